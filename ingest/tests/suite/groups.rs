use crate::workshop::{Workshop, groups, open, prose};
use std::collections::BTreeMap;
use store::Payload;

#[test]
fn groups_close_when_they_hold_enough_tokens() {
    let workshop = Workshop::new();
    let options = workshop.options(vec![workshop.corpus("c", "en", prose(1, 40))]);
    let teachers = [workshop.word_teacher("words", &["en"]), workshop.letter_teacher("letters", &["en"])];
    let groups = groups(open(&options, &teachers).unwrap());
    assert!(groups.len() > 10);
    let (last, others) = groups.split_last().unwrap();
    assert!(!last.entries.is_empty());
    for group in others {
        let lengths: Vec<usize> = group
            .entries
            .iter()
            .map(|entry| match &entry.payload {
                Payload::Record(record) => record.copies.iter().map(|copy| copy.token_ids.len()).sum(),
                _ => 0,
            })
            .collect();
        let total: usize = lengths.iter().sum();
        assert!(total >= options.group_tokens && total - lengths.last().unwrap() < options.group_tokens);
    }
}

#[test]
fn every_copy_of_a_labelling_teacher_is_in_one_batch_by_length_and_budget() {
    for batch_tokens in [1, 40, 200, 100_000] {
        let workshop = Workshop::new();
        let mut options = workshop.options(vec![workshop.corpus("c", "en", prose(2, 30))]);
        options.batch_tokens = batch_tokens;
        let mut silent = workshop.letter_teacher("silent", &["en"]);
        silent.labels = false;
        let other = workshop.letter_teacher("other-language", &["de"]);
        let teachers =
            [silent, other, workshop.word_teacher("words", &["en"]), workshop.letter_teacher("letters", &["en"])];
        for group in groups(open(&options, &teachers).unwrap()) {
            let mut seen = BTreeMap::new();
            assert!(group.batches.iter().map(|batch| batch.teacher).is_sorted());
            let mut last: BTreeMap<u16, (usize, u32)> = BTreeMap::new();
            for batch in &group.batches {
                let mut tokens = 0;
                for (entry, copy) in &batch.members {
                    let Payload::Record(record) = &group.entries[*entry as usize].payload else { panic!("no record") };
                    let copy = &record.copies[*copy as usize];
                    assert_eq!(copy.teacher, batch.teacher);
                    let place = (copy.token_ids.len(), *entry);
                    assert!(last.insert(batch.teacher, place).is_none_or(|before| before < place));
                    tokens += place.0;
                    *seen.entry((batch.teacher, *entry)).or_insert(0) += 1;
                }
                assert!(!batch.members.is_empty());
                assert!(tokens <= batch_tokens || batch.members.len() == 1, "{tokens} tokens");
            }
            let records = group.entries.iter().filter(|entry| matches!(entry.payload, Payload::Record(_))).count();
            assert_eq!(seen.len(), 2 * records);
            assert!(seen.iter().all(|((teacher, _), count)| *count == 1 && [2, 3].contains(teacher)));
        }
    }
}

#[test]
fn copies_follow_the_teacher_table() {
    let workshop = Workshop::new();
    let options = workshop.options(vec![workshop.corpus("en", "en", "menu"), workshop.corpus("de", "de", "menu")]);
    let teachers = [
        workshop.word_teacher("both", &["de", "en"]),
        workshop.word_teacher("de", &["de"]),
        workshop.letter_teacher("en", &["en"]),
    ];
    for group in groups(open(&options, &teachers).unwrap()) {
        for entry in &group.entries {
            let Payload::Record(record) = &entry.payload else { continue };
            let own: Vec<u16> = record.copies.iter().map(|copy| copy.teacher).collect();
            assert_eq!(own, if &*record.language == "en" { [0, 2] } else { [0, 1] });
            assert!(record.copies.iter().all(|copy| copy.label.is_none()));
        }
    }
}
