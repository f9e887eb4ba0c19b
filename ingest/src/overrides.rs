//! What someone has set: shares of languages, and corpora and teachers that pause.

use crate::changes::ChangeError;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What is set beside the options that the stage was opened with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    /// α; `None`: that of the options.
    pub alpha: Option<f64>,
    /// Fraction of the draws, by language, as long as it has input; the others divide the rest ∝ n_k^α.
    pub shares: BTreeMap<Arc<str>, f64>,
    /// Names of corpora, or of single sources of them, that are not drawn. What arrives meanwhile is kept.
    pub paused: BTreeSet<Arc<str>>,
    /// Names of teachers that get no copies. Spans and masks of the others' copies stay what they are; a language all of
    /// whose teachers pause is not drawn.
    pub paused_teachers: BTreeSet<Arc<str>>,
}

impl Overrides {
    /// Gives `language` this share, or again the one that follows from its characters (`None`).
    pub(crate) fn set_share(&mut self, language: &Arc<str>, share: Option<f64>) -> Result<(), ChangeError> {
        let Some(share) = share else {
            self.shares.remove(language);
            return Ok(());
        };
        if !(share > 0.0 && share <= 1.0) {
            let message =
                format!("share {share} of language `{language}` is not within (0, 1]; pause its corpora for 0");
            return Err(ChangeError::Invalid(message));
        }
        let others: f64 = self.shares.iter().filter(|(other, _)| *other != language).map(|(_, share)| share).sum();
        if others + share > 1.0 + 1e-9 {
            let message = format!("share {share} of language `{language}` and {others} of others make more than 1");
            return Err(ChangeError::Invalid(message));
        }
        self.shares.insert(Arc::clone(language), share);
        Ok(())
    }

    /// Suspends or resumes a corpus or source.
    pub(crate) fn set_paused(&mut self, corpus: Arc<str>, paused: bool) {
        set(&mut self.paused, corpus, paused);
    }

    /// Suspends or resumes a teacher.
    pub(crate) fn set_teacher_paused(&mut self, teacher: Arc<str>, paused: bool) {
        set(&mut self.paused_teachers, teacher, paused);
    }

    /// Leaves out what is about languages, corpora and teachers that are not there any more.
    pub(crate) fn keep_known(
        &mut self,
        languages: &BTreeSet<Arc<str>>,
        corpora: &BTreeSet<Arc<str>>,
        teachers: &BTreeSet<Arc<str>>,
    ) {
        let known = |names: &BTreeSet<Arc<str>>, name: &Arc<str>| {
            let known = names.contains(name);
            if !known {
                tracing::warn!(
                    name = &**name,
                    "a share or pause was set for what is not there any more; it is left out"
                );
            }
            known
        };
        self.shares.retain(|language, _| known(languages, language));
        self.paused.retain(|corpus| known(corpora, corpus));
        self.paused_teachers.retain(|teacher| known(teachers, teacher));
    }
}

fn set(names: &mut BTreeSet<Arc<str>>, name: Arc<str>, is_in: bool) {
    if is_in {
        names.insert(name);
    } else {
        names.remove(&name);
    }
}
