//! What a mismatch tells.

use crate::sample::{identity, open_as, options, unsealed};
use store::{Identity, StoreError};

fn check(change: fn(&mut Identity), expected: &[&str]) {
    let mut wanted = identity();
    change(&mut wanted);
    let failure = open_as(&unsealed(&[5]), &wanted, &options(1 << 20)).map(|_| ()).unwrap_err();
    let StoreError::IdentityMismatch { lines, .. } = &failure else { panic!("{failure}") };
    assert_eq!(lines, expected);
    assert!(expected.iter().all(|line| failure.to_string().contains(line)), "{failure}");
}

#[test]
fn every_difference_is_told() {
    check(
        |identity| drop(identity.settings.insert("run.seed".to_owned(), "7".to_owned())),
        &["run.seed: 0 in the log, 7 in the configuration"],
    );
    check(
        |identity| drop(identity.settings.insert("masking.whole_word".to_owned(), "true".to_owned())),
        &["masking.whole_word: unset in the log, true in the configuration"],
    );
    check(
        |identity| {
            identity.teachers[0].weights_fingerprint = "other".to_owned();
            identity.teachers.truncate(2);
        },
        &[
            "teacher `en`: weights was `weights of en`, is `other`",
            "teacher `fi` of the log is missing from the configuration",
        ],
    );
}
