#![allow(clippy::unwrap_used)]

use super::*;

/// A teacher whose tokens are the words of `text`; `special` names its pad, unk, cls, sep and mask tokens.
struct Teacher {
    name: &'static str,
    tokens: Vec<String>,
    special: SpecialTokens,
    lowercase: bool,
}

impl Teacher {
    fn new(name: &'static str, special: [&str; 5], text: &str) -> Self {
        let tokens: Vec<String> = text.split(' ').map(str::to_owned).collect();
        let id = |token: &str| tokens.iter().position(|t| t == token).unwrap() as u32;
        let [pad, unk, cls, sep, mask] = special.map(id);
        Self { name, special: SpecialTokens { pad, unk, cls, sep, mask }, tokens, lowercase: false }
    }

    fn bert(name: &'static str, words: &str) -> Self {
        Self::new(name, BERT, &format!("[PAD] [UNK] [CLS] [SEP] [MASK] {words}"))
    }

    fn tokens(&self) -> TeacherTokens<'_> {
        TeacherTokens {
            name: self.name,
            tokens: &self.tokens,
            special: self.special,
            normalisation: Normalisation { lowercase: self.lowercase, strip_accents: None, handle_chinese_chars: true },
            fingerprint: self.name,
        }
    }
}

const BERT: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

fn union(teachers: &[&Teacher]) -> Vocabulary {
    Vocabulary::union(&tokens(teachers)).unwrap()
}

fn tokens<'a>(teachers: &[&'a Teacher]) -> Vec<TeacherTokens<'a>> {
    teachers.iter().map(|teacher| teacher.tokens()).collect()
}

#[test]
fn special_tokens_first_then_first_appearance() {
    let en = Teacher::new("en", BERT, "a [MASK] [CLS] [SEP] [UNK] [PAD] b ##c");
    let de = Teacher::bert("de", "b d ##c a");
    let union = union(&[&en, &de]);
    assert_eq!(union.tokens(), ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##c", "d"]);
    assert_eq!(union.maps()[0].to_student, [5, 4, 2, 3, 1, 0, 6, 7]);
    assert_eq!(union.maps()[1].to_student, [0, 1, 2, 3, 4, 6, 8, 7, 5]);
    assert_eq!((union.maps()[0].new, union.maps()[1].new, union.size()), (8, 1, 9));
    assert_eq!(union.characters()[5..], [1, 1, 1, 1], "the continuation mark is no character");
}

#[test]
fn special_by_role_never_by_spelling() {
    let angle = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"];
    // In `fr` the bracketed names are ordinary tokens, in `en` and `it` the angled ones are.
    let en = Teacher::bert("en", "<s> x");
    let fr = Teacher::new("fr", angle, "<s> <pad> </s> <unk> [MASK] [CLS] x <mask>");
    let it = Teacher::bert("it", "<s> <mask>");
    let union = union(&[&en, &fr, &it]);
    assert_eq!(
        union.tokens()[SPECIAL_COUNT..],
        ["<s>", "x", "[ordinary] [MASK]", "[ordinary] [CLS]", "<mask>"],
        "spelled like a unified special token, yet ordinary"
    );
    assert_eq!(union.maps()[1].to_student, [2, 0, 3, 1, 7, 8, 6, 4]);
    assert_eq!(union.maps()[2].to_student, [0, 1, 2, 3, 4, 5, 9]);
}

#[test]
fn swapped_spellings_follow_the_role() {
    let en = Teacher::bert("en", "x");
    let odd = Teacher::new("odd", ["[PAD]", "[UNK]", "[SEP]", "[CLS]", "[MASK]"], "[PAD] [UNK] [CLS] [SEP] [MASK] x");
    assert_eq!(union(&[&en, &odd]).maps()[1].to_student, [0, 1, 3, 2, 4, 5]);
}

#[test]
fn every_map_is_injective_and_every_line_unique() {
    let mut odd = Teacher::new("odd", ["p", "u", "c", "s", "m"], "p u c s m [PAD] x");
    odd.tokens.extend(["", "a\nb", "a\\nb", "a\rb", "[ordinary] a\\nb", "[ordinary] [PAD]"].map(str::to_owned));
    let union = union(&[&Teacher::bert("en", "x a"), &odd]);
    for map in union.maps() {
        let mut ids = map.to_student.clone();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), map.size(), "{}", map.teacher);
    }
    let mut lines: Vec<_> = union.lines().lines().map(str::to_owned).collect();
    assert_eq!(lines, union.tokens());
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), union.size());
    for (token, id) in odd.tokens.iter().zip(&union.maps()[1].to_student).skip(SPECIAL_COUNT) {
        assert_eq!(unescape(&union.tokens()[*id as usize]), *token);
    }
}

#[test]
fn an_id_never_changes() {
    let teachers = [Teacher::bert("a", "x y"), Teacher::bert("b", "y z"), Teacher::bert("c", "w z x v")];
    let mut grown = union(&[&teachers[0]]);
    for (count, teacher) in teachers.iter().enumerate().skip(1) {
        let before = grown.clone();
        grown.extend(&teacher.tokens()).unwrap();
        assert!(grown.continues(&before));
        assert_eq!(grown, union(&teachers.iter().take(count + 1).collect::<Vec<_>>()));
    }
}

#[test]
fn unusable_tokenizers_are_refused() {
    let twice = Teacher::bert("twice", "x y x");
    let mut outside = Teacher::bert("outside", "x");
    outside.special.mask = 99;
    let mut shared = Teacher::bert("shared", "x");
    shared.special.sep = shared.special.cls;
    for (teacher, expected) in [
        (twice, "teacher `twice`: its vocabulary lists `x` twice, as 5 and 7"),
        (outside, "teacher `outside`: its mask token has id 99, but its vocabulary has 6 tokens"),
        (shared, "teacher `shared`: `[CLS]` is both its cls and its sep token"),
    ] {
        assert_eq!(Vocabulary::union(&[teacher.tokens()]).unwrap_err().to_string(), expected);
    }
    assert!(Vocabulary::union(&[]).unwrap_err().to_string().contains("at least one teacher"));
}

#[test]
fn different_normalisation_is_a_warning() {
    let (en, mut de) = (Teacher::bert("en", "x"), Teacher::bert("de", "y"));
    assert!(union(&[&en, &de]).warnings().is_empty());
    de.lowercase = true;
    let warnings = union(&[&en, &de]).warnings();
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("`de`") && warnings[0].contains("uncased, accents removed"), "{}", warnings[0]);
}

#[test]
fn a_folder_is_reopened_and_extended() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("vocab");
    let (en, de, it) = (Teacher::bert("en", "x"), Teacher::bert("de/at", "y x"), Teacher::bert("it", "z y"));
    let first = Vocabulary::open(&dir, &tokens(&[&en, &de])).unwrap();
    assert_eq!(Vocabulary::load(&dir).unwrap(), first);
    assert!(dir.join("maps/01-de_at.json").exists(), "a teacher's name is no path");
    assert_eq!(Vocabulary::open(&dir, &tokens(&[&en, &de])).unwrap(), first);
    let grown = Vocabulary::open(&dir, &tokens(&[&en, &de, &it])).unwrap();
    assert!(grown.continues(&first) && grown.size() == first.size() + 1);
    assert_eq!(Vocabulary::load(&dir).unwrap(), grown);
}

#[test]
fn a_folder_of_other_teachers_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (en, de) = (Teacher::bert("en", "x"), Teacher::bert("de", "y"));
    Vocabulary::open(folder.path(), &tokens(&[&en, &de])).unwrap();
    let mut changed = tokens(&[&en, &de]);
    changed[1].fingerprint = "new";
    for (teachers, expected) in [
        (tokens(&[&en]), "teacher `de` is missing"),
        (tokens(&[&de, &en]), "teacher 1 was `en`, is `de`; teacher 2 was `de`, is `en`"),
        (changed, "the tokenizer of teacher `de` has changed"),
    ] {
        let error = Vocabulary::open(folder.path(), &teachers).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn growth_that_was_cut_short_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let (en, de, it) = (Teacher::bert("en", "x"), Teacher::bert("de", "y"), Teacher::bert("it", "z"));
    let first = Vocabulary::open(dir, &tokens(&[&en])).unwrap();
    let manifest = fs::read(dir.join(MANIFEST)).unwrap();
    Vocabulary::open(dir, &tokens(&[&en, &de])).unwrap();
    // The crash came before the last file was replaced, and then the user chose another teacher.
    fs::write(dir.join(MANIFEST), manifest).unwrap();
    assert_eq!(Vocabulary::load(dir).unwrap(), first);
    let grown = Vocabulary::open(dir, &tokens(&[&en, &it])).unwrap();
    assert_eq!(grown.tokens().last().unwrap(), "z");
    assert_eq!(Vocabulary::load(dir).unwrap(), grown);
}

#[test]
fn damage_is_named() {
    let teachers = [Teacher::bert("en", "x y"), Teacher::bert("de", "y z")];
    let teachers: Vec<_> = teachers.iter().map(Teacher::tokens).collect();
    for (file, from, to) in [
        ("vocab.txt", "x", "w"),
        ("vocab.txt", "\nz\n", "\n"),
        ("maps/01-de.json", "6", "5"),
        ("maps/01-de.json", "]", ""),
        ("vocabulary.json", "\"format\":1", "\"format\":9"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        Vocabulary::open(folder.path(), &teachers).unwrap();
        let path = folder.path().join(file);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{file}: {text}");
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
        let error = Vocabulary::open(folder.path(), &teachers).unwrap_err();
        assert!(matches!(error, TrainerError::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains(file), "{error}");
    }
}

#[test]
fn new_tokens_are_cut_into_known_ones() {
    let en = Teacher::bert("en", "a ab ##a ##b ##bc b c");
    let de = Teacher::bert("de", "abc abbc ##bcb abd ##ab [x] ##a# caba");
    let union = union(&[&en, &de]);
    let known = 5 + 7;
    let pieces = |token: &str| {
        let id = union.tokens().iter().position(|known| known == token).unwrap();
        let pieces = union.pieces(id, known)?;
        Some(pieces.into_iter().map(|piece| union.tokens()[piece as usize].clone()).collect::<Vec<_>>().join(" "))
    };
    // The longest one first, as WordPiece does: `ab` and `##c`, which is none, before `a` and `##bc`.
    assert_eq!(pieces("abc"), None);
    assert_eq!(pieces("abbc").as_deref(), Some("ab ##bc"));
    assert_eq!(pieces("##bcb").as_deref(), Some("##bc ##b"));
    assert_eq!(pieces("##ab").as_deref(), Some("##a ##b"));
    assert_eq!(pieces("caba").as_deref(), Some("c ##a ##b ##a"));
    for token in ["abd", "[x]", "##a#"] {
        assert_eq!(pieces(token), None, "{token}");
    }
    // Known tokens are their own pieces.
    assert_eq!(union.pieces(6, known), Some(vec![6]));
}
