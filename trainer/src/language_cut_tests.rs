#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use super::*;
use crate::export::{Exported, export};
use crate::options::StudentOptions;
use crate::tokenizer_export::export_tokenizers;
use crate::vocabulary::{SPECIAL, TeacherTokens, Vocabulary};
use model::{PackedBatch, Tokenizer};
use std::path::PathBuf;

const TEXTS: [&str; 4] =
    ["Open the file, then print it.", "öffnen Sie die DATEI!", "x [MASK] y", "the unknownword printfile"];
const WORDS: [&str; 3] = [
    "Open open the file print ##print ##file it then x y z . ,",
    "öffnen sie Sie die DATEI datei the x ! . ##file",
    "avaa tiedosto x the",
];
const LANGUAGES: [&[&str]; 3] = [&["en"], &["de", "at"], &["fi"]];

/// A student of three teachers, and the tokenizers that go with it.
struct Scene {
    folder: tempfile::TempDir,
    student: Bert,
    vocabulary: Vocabulary,
}

impl Scene {
    fn new(embedding_size: usize) -> Self {
        Self::of(embedding_size, [false; 3])
    }

    fn of(embedding_size: usize, uncased: [bool; 3]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let teachers = WORDS.iter().zip(uncased).enumerate();
        let teachers: Vec<Tokenizer> = teachers
            .map(|(at, (words, uncased))| teacher(&folder.path().join(at.to_string()), words, uncased))
            .collect();
        let names = ["first", "second", "third"];
        let tokens: Vec<_> =
            names.iter().zip(&teachers).map(|(name, teacher)| TeacherTokens::new(name, teacher)).collect();
        let vocabulary = Vocabulary::union(&tokens).unwrap();
        let tokenizers = folder.path().join("tokenizers");
        let folders = export_tokenizers(&tokenizers, &vocabulary, &teachers.iter().collect::<Vec<_>>(), 16).unwrap();
        let known = names.iter().zip(LANGUAGES).zip(folders).map(|((name, languages), folder)| KnownTeacher {
            name: (*name).to_owned(),
            languages: languages.iter().map(|language| (*language).to_owned()).collect(),
            tokenizer: folder.strip_prefix(&tokenizers).unwrap().to_owned(),
        });
        write_known_teachers(&tokenizers, &known.collect::<Vec<_>>()).unwrap();
        let shape = StudentOptions {
            layers: 2,
            hidden_size: 8,
            heads: 2,
            intermediate_size: 12,
            embedding_size,
            max_sequence_length: 16,
            dropout: 0.0,
            ..StudentOptions::default()
        };
        let configuration = shape.configuration(vocabulary.size(), SPECIAL.pad);
        let parameters = Parameters::initialise(&configuration, 5, &Device::Cpu).unwrap();
        Self { folder, student: Bert { configuration, parameters }, vocabulary }
    }

    fn export(&self, languages: &[&str]) -> Result<(PathBuf, Exported), TrainerError> {
        let out = self.folder.path().join("out");
        let languages: Vec<String> = languages.iter().map(|language| (*language).to_owned()).collect();
        let exported = export(&out, &self.student, &self.folder.path().join("tokenizers"), 7, None, &languages)?;
        Ok((out, exported))
    }
}

fn teacher(dir: &Path, words: &str, uncased: bool) -> Tokenizer {
    fs::create_dir_all(dir).unwrap();
    let lines = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].into_iter().chain(words.split(' '));
    fs::write(dir.join(WORDS_FILE), lines.map(|token| format!("{token}\n")).collect::<String>()).unwrap();
    fs::write(dir.join("tokenizer_config.json"), json!({"do_lower_case": uncased}).to_string()).unwrap();
    Tokenizer::load(dir).unwrap()
}

const WORDS_FILE: &str = super::WORDS;

/// Hidden rows and logits at every position of `ids`.
fn outputs(bert: &Bert, ids: &[u32]) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
    let masked_rows = (0..ids.len() as u32).collect();
    let batch =
        PackedBatch { token_ids: ids.to_vec(), lengths: vec![ids.len()], masked_rows, ..PackedBatch::default() };
    let hidden = bert.transform_masked(&batch, None).unwrap();
    let (weight, bias) = bert.decoder();
    let logits = hidden.matmul(&weight.t().unwrap()).unwrap().broadcast_add(bias).unwrap();
    (hidden.to_vec2().unwrap(), logits.to_vec2().unwrap())
}

#[test]
fn the_cut_student_says_of_its_tokens_what_the_full_one_says() {
    for (embedding_size, languages, kept) in [
        (8, &["de"][..], &[1][..]),
        (4, &["at"], &[1]),
        (8, &["en", "fi"], &[0, 2]),
        (4, &["fi", "de", "en"], &[0, 1, 2]),
    ] {
        let scene = Scene::new(embedding_size);
        let (out, exported) = scene.export(languages).unwrap();
        let cut = Bert::load(&out, &Device::Cpu).unwrap();
        // By id in the cut student: the one in the full student.
        let maps = || kept.iter().map(|at: &usize| &scene.vocabulary.maps()[*at]);
        let rows: BTreeSet<u32> = (0..5).chain(maps().flat_map(|map| map.to_student.iter().copied())).collect();
        let rows: Vec<u32> = rows.into_iter().collect();
        assert_eq!((exported.tokens, exported.full_tokens), (rows.len(), scene.vocabulary.size()), "{languages:?}");
        assert_eq!(
            exported.full_bytes - exported.bytes,
            4 * (exported.full_tokens - exported.tokens) as u64 * (embedding_size as u64 + 1)
        );
        for map in maps() {
            let name = Path::new("tokenizers").join(&map.teacher);
            let [of_cut, of_full] = [&out, &scene.folder.path().join("tokenizers")]
                .map(|folder| Tokenizer::load(&folder.join(&name)).unwrap());
            for text in TEXTS {
                let ids = of_cut.encode(text).unwrap().ids;
                let full: Vec<u32> = ids.iter().map(|id| rows[*id as usize]).collect();
                assert_eq!(full, of_full.encode(text).unwrap().ids, "{languages:?} {text}");
                let ((hidden, logits), (full_hidden, full_logits)) =
                    (outputs(&cut, &ids), outputs(&scene.student, &full));
                assert_eq!(hidden, full_hidden);
                for (logits, full) in logits.iter().zip(full_logits) {
                    let expected: Vec<f32> = rows.iter().map(|row| full[*row as usize]).collect();
                    let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6;
                    assert!(logits.len() == expected.len() && logits.iter().zip(&expected).all(close));
                }
            }
        }
        // Everything that a language's teacher does not have is gone; its own tokenizer is that of the folder.
        let folders = fs::read_dir(out.join("tokenizers")).unwrap().count();
        assert_eq!(folders, kept.len());
        if let [alone] = kept {
            let name = Path::new("tokenizers").join(&scene.vocabulary.maps()[*alone].teacher);
            let read = |folder: &Path| fs::read(folder.join(TOKENIZER)).unwrap();
            assert!(read(&out) == read(&out.join(name)));
        }
        let words = fs::read_to_string(out.join(WORDS_FILE)).unwrap();
        let expected: Vec<&str> = rows.iter().map(|row| scene.vocabulary.tokens()[*row as usize].as_str()).collect();
        assert_eq!(words.lines().collect::<Vec<_>>(), expected);
        assert!(Tokenizer::load(&out).unwrap().vocabulary().len() <= rows.len());
    }
}

#[test]
fn the_tokenizer_of_the_folder_normalises_as_the_teachers_that_are_kept() {
    for (uncased, languages, lowercase) in [
        ([false, true, true], &["de", "fi"][..], true),
        ([false, true, true], &["en", "de"], false),
        ([false, true, true], &["fi"], true),
        ([true, true, false], &["en", "de", "fi"], false),
        ([true, true, false], &["en", "at"], true),
    ] {
        let scene = Scene::of(8, uncased);
        let (out, _) = scene.export(languages).unwrap();
        let tokenizer = Tokenizer::load(&out).unwrap();
        assert_eq!(tokenizer.normalisation().lowercase, lowercase, "{uncased:?} {languages:?}");
        let [small, large] = ["the x", "THE X"].map(|text| tokenizer.encode(text).unwrap().ids);
        assert_eq!(small == large, lowercase, "{uncased:?} {languages:?}");
        let unknown = tokenizer.special().unk;
        assert!(!small.contains(&unknown), "{uncased:?} {languages:?}");
        if languages.len() > 1 {
            let configuration = read_json(&out.join("tokenizer_config.json")).unwrap();
            let keys = ["do_lower_case", "strip_accents", "tokenize_chinese_chars"].map(|key| &configuration[key]);
            assert_eq!(keys, [&json!(lowercase), &json!(lowercase), &json!(true)], "{uncased:?} {languages:?}");
        }
    }
}

#[test]
fn a_cut_can_be_cut_again() {
    let scene = Scene::new(8);
    let (out, _) = scene.export(&["de", "fi"]).unwrap();
    let cut = Bert::load(&out, &Device::Cpu).unwrap();
    let again = scene.folder.path().join("again");
    let exported = export(&again, &cut, &out, 7, None, &["fi".to_owned()]).unwrap();
    let (once, _) = scene.export(&["fi"]).unwrap();
    assert_eq!(exported.tokens, 5 + 4);
    for file in ["vocab.txt", TOKENIZER, "model.safetensors", "teachers.json"] {
        assert!(fs::read(again.join(file)).unwrap() == fs::read(once.join(file)).unwrap(), "{file}");
    }
}

#[test]
fn what_cannot_be_cut_is_said() {
    let mut scene = Scene::new(8);
    let error = scene.export(&["de", "xx", "yy"]).unwrap_err().to_string();
    assert_eq!(error, "no teacher of the student has language `xx`, `yy`; there are: at, de, en, fi");
    scene.student.configuration.vocabulary_size -= 1;
    let error = scene.export(&["de"]).unwrap_err().to_string();
    assert!(error.contains("write a checkpoint first"), "{error}");
    fs::remove_file(scene.folder.path().join("tokenizers/teachers.json")).unwrap();
    scene.student.configuration.vocabulary_size += 1;
    let error = scene.export(&["de"]).unwrap_err().to_string();
    assert!(error.contains("teachers.json is missing"), "{error}");
    assert!(!scene.folder.path().join("out").exists() && !scene.folder.path().join(".out.partial").exists());
}
