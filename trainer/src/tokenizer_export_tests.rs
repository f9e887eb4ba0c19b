#![allow(clippy::unwrap_used)]

use super::*;
use crate::vocabulary::TeacherTokens;
use std::fs;

const TEXTS: [&str; 6] = [
    "Open the file, then print it.",
    "Öffnen Sie die DATEI (Übersicht) 文字 café!",
    "x [MASK] y [SEP] <mask> z <s>",
    "",
    "printprintfile openthe unknownword",
    "the\u{301} \u{2028}tab\tand\nnewline",
];

/// A teacher's folder with `words` after its special tokens.
fn teacher(dir: &Path, special: [&str; 5], words: &str, lowercase: bool) -> Tokenizer {
    fs::create_dir_all(dir).unwrap();
    let lines = special.iter().copied().chain(words.split(' ')).map(|token| format!("{token}\n"));
    fs::write(dir.join("vocab.txt"), lines.collect::<String>()).unwrap();
    let [pad, unk, cls, sep, mask] = special;
    let configuration = json!({
        "tokenizer_class": "BertTokenizer", "do_lower_case": lowercase, "tokenize_chinese_chars": true,
        "pad_token": pad, "unk_token": unk, "cls_token": cls, "sep_token": sep, "mask_token": mask,
    });
    fs::write(dir.join("tokenizer_config.json"), configuration.to_string()).unwrap();
    Tokenizer::load(dir).unwrap()
}

const BERT: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
const ANGLED: [&str; 5] = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"];
const WORDS_EN: &str = "Open open the file print ##print ##file ##the it then x y z ( ) . , ! < > s mask [ ] MASK";
const WORDS_DE: &str =
    "öffnen sie die datei the x caf ##é cafe übersicht uber ##sicht . , ! ( ) [ ] mask [MASK] tab newline";

struct Exported {
    folder: tempfile::TempDir,
    teachers: Vec<Tokenizer>,
    vocabulary: Vocabulary,
    folders: Vec<PathBuf>,
}

fn export(special: [[&str; 5]; 2], lowercase: [bool; 2]) -> Exported {
    let folder = tempfile::tempdir().unwrap();
    let teachers: Vec<Tokenizer> = [WORDS_EN, WORDS_DE]
        .iter()
        .enumerate()
        .map(|(at, words)| teacher(&folder.path().join(at.to_string()), special[at], words, lowercase[at]))
        .collect();
    let tokens: Vec<_> = ["en", "de"].iter().zip(&teachers).map(|(name, t)| TeacherTokens::new(name, t)).collect();
    let vocabulary = Vocabulary::union(&tokens).unwrap();
    let out = folder.path().join("out");
    let folders = export_tokenizers(&out, &vocabulary, &teachers.iter().collect::<Vec<_>>(), 64).unwrap();
    Exported { folder, teachers, vocabulary, folders }
}

fn load(dir: &Path) -> tokenizers::Tokenizer {
    tokenizers::Tokenizer::from_file(dir.join("tokenizer.json")).unwrap()
}

#[test]
fn a_teachers_tokenizer_gives_its_tokens_in_student_ids() {
    for (special, lowercase) in
        [([BERT, BERT], [false, false]), ([BERT, ANGLED], [false, true]), ([ANGLED, BERT], [true, true])]
    {
        let exported = export(special, lowercase);
        for ((folder, teacher), map) in exported.folders.iter().zip(&exported.teachers).zip(exported.vocabulary.maps())
        {
            let loaded = load(folder);
            for text in TEXTS {
                let expected: Vec<u32> =
                    teacher.encode(text).unwrap().ids.iter().map(|id| map.student_id(*id).unwrap()).collect();
                assert_eq!(loaded.encode(text, false).unwrap().get_ids(), expected, "{} {text:?}", map.teacher);
                let framed: Vec<u32> = [2].into_iter().chain(expected).chain([3]).collect();
                assert_eq!(loaded.encode(text, true).unwrap().get_ids(), framed, "{text:?}");
            }
            // The same through our own loader.
            let again = Tokenizer::load(folder).unwrap();
            assert_eq!(again.special(), crate::vocabulary::SPECIAL);
        }
    }
}

#[test]
fn the_union_tokenizer_has_the_unions_ids() {
    let exported = export([BERT, ANGLED], [false, false]);
    let out = exported.folder.path().join("out");
    let union = load(&out);
    assert_eq!(union.get_vocab_size(true), exported.vocabulary.size());
    for (id, token) in exported.vocabulary.tokens().iter().enumerate() {
        assert_eq!(union.token_to_id(token), Some(id as u32), "{token}");
    }
    assert_eq!(fs::read_to_string(out.join("vocab.txt")).unwrap(), exported.vocabulary.lines());
    let again = Tokenizer::load(&out).unwrap();
    assert_eq!(again.vocabulary(), exported.vocabulary.tokens());
    assert_eq!(again.special(), crate::vocabulary::SPECIAL);
    // `##print` is the first teacher's, `caf` and `##é` the second's, and [MASK] is special: its ordinary twin is not met.
    let tokens = union.encode("printprint café [MASK]", true).unwrap().get_tokens().to_vec();
    assert_eq!(tokens, ["[CLS]", "print", "##print", "caf", "##é", "[MASK]", "[SEP]"]);
    let pair = union.encode(("x", "y"), true).unwrap();
    assert_eq!(pair.get_tokens(), ["[CLS]", "x", "[SEP]", "y", "[SEP]"]);
    assert_eq!(pair.get_type_ids(), [0, 0, 0, 1, 1]);
}

#[test]
fn the_union_normalises_as_the_teachers_do_if_they_agree() {
    for (lowercase, expected) in [
        ([false, false], vec!["Open", "open"]),
        ([true, true], vec!["open", "open"]),
        ([true, false], vec!["Open", "open"]),
    ] {
        let exported = export([BERT, BERT], lowercase);
        let union = load(&exported.folder.path().join("out"));
        assert_eq!(union.encode("Open open", false).unwrap().get_tokens(), expected, "{lowercase:?}");
    }
}

#[test]
fn added_tokens_outside_the_vocabulary_keep_their_student_ids() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("en");
    teacher(&dir, BERT, WORDS_EN, false);
    let added = json!({ "<date>": 5 + WORDS_EN.split(' ').count() });
    fs::write(dir.join("added_tokens.json"), added.to_string()).unwrap();
    let en = Tokenizer::load(&dir).unwrap();
    let de = teacher(&folder.path().join("de"), BERT, WORDS_DE, false);
    // The other teacher first, so that ids differ.
    let vocabulary = Vocabulary::union(&[TeacherTokens::new("de", &de), TeacherTokens::new("en", &en)]).unwrap();
    let folders = export_tokenizers(&folder.path().join("out"), &vocabulary, &[&de, &en], 64).unwrap();
    let (teacher, exported) = (en.encode("open <date> file").unwrap(), load(&folders[1]));
    assert_eq!(teacher.ids.len(), 3);
    let expected: Vec<u32> = teacher.ids.iter().map(|id| vocabulary.maps()[1].student_id(*id).unwrap()).collect();
    assert_eq!(exported.encode("open <date> file", false).unwrap().get_ids(), expected);
}

#[test]
fn names_that_make_the_same_folder_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let en = teacher(&folder.path().join("en"), BERT, "x", false);
    let names = ["a/b", "a_b", "A_B", ".."];
    let tokens: Vec<_> = names.iter().map(|name| TeacherTokens::new(name, &en)).collect();
    let vocabulary = Vocabulary::union(&tokens).unwrap();
    let folders = teacher_folders(Path::new("out"), &vocabulary);
    let expected = ["a_b", "a_b-1", "A_B-2", "_.."].map(|name| Path::new("out/tokenizers").join(name));
    assert_eq!(folders, expected);
    let error = export_tokenizers(folder.path(), &vocabulary, &[&en], 8).unwrap_err().to_string();
    assert!(error.contains("1 tokenizers for a vocabulary of 4 teachers"), "{error}");
}
