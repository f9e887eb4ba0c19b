//! Reading a tokenizer's folder by the rules of transformers.

use super::{SpecialTokens, word_piece};
use crate::ModelError;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{AddedToken, Model, Tokenizer};

const TOKENIZER: &str = "tokenizer.json";
const VOCABULARY: &str = "vocab.txt";
const CONFIGURATION: &str = "tokenizer_config.json";

/// Roles in the order in which transformers adds tokens that the vocabulary lacks, with BERT's defaults.
const ROLES: [(&str, Option<&str>); 7] = [
    ("bos", None),
    ("eos", None),
    ("unk", Some("[UNK]")),
    ("sep", Some("[SEP]")),
    ("pad", Some("[PAD]")),
    ("cls", Some("[CLS]")),
    ("mask", Some("[MASK]")),
];

/// No vocabulary comes near; an id beyond it is damage, and would ask for gigabytes of placeholders.
const ID_MAX: u32 = 1 << 24;

pub(super) struct Loaded {
    pub(super) inner: Tokenizer,
    pub(super) special: SpecialTokens,
}

/// The settings of a folder: `tokenizer_config.json`, completed from the older files beside it.
struct Settings {
    path: PathBuf,
    map: Map<String, Value>,
}

pub(super) fn load(dir: &Path) -> Result<Loaded, ModelError> {
    let settings = Settings::read(dir)?;
    let json_path = dir.join(TOKENIZER);
    let json = read_json(&json_path)?;
    let class = settings.class(dir)?;
    let (mut inner, path) = match (json, class.as_deref()) {
        (Some(json), None) => (bert_from_json(&json, &json_path, &settings)?, json_path),
        (Some(json), Some(_)) => (generic(json, &json_path)?, json_path),
        (None, None) => {
            let path = dir.join(VOCABULARY);
            (bert(read_vocabulary(dir, &path)?, &settings, &path)?, path)
        }
        (None, Some(class)) => {
            return Err(ModelError::Unsupported {
                path: settings.path,
                reason: format!(
                    "a tokenizer of class {class} needs tokenizer.json; from vocab.txt alone only BertTokenizer can be built"
                ),
            });
        }
    };
    let malformed = |reason: String| ModelError::Malformed { path: path.clone(), reason };
    let failed = |error: tokenizers::Error| malformed(error.to_string());
    inner.with_truncation(None).map_err(failed)?;
    inner.with_padding(None);
    let names = settings.role_names(&inner);
    let listed = settings.listed_tokens(dir)?;
    inner.add_tokens(listed).map_err(failed)?;
    let special = special_tokens(&inner, &names, &path)?;
    let named = settings.named_tokens(&names, &inner);
    inner.add_tokens(named).map_err(failed)?;
    inner.set_encode_special_tokens(settings.flag("split_special_tokens", false)?);
    Ok(Loaded { inner, special })
}

/// Tokens by id. Ids that no token has get a name with spaces in it: no text gives such a token.
pub(super) fn dense_vocabulary(inner: &Tokenizer, dir: &Path) -> Result<Vec<String>, ModelError> {
    let by_name: BTreeMap<String, u32> = inner.get_vocab(true).into_iter().collect();
    let last = by_name.values().max().copied().unwrap_or(0);
    if last > ID_MAX {
        let reason = format!("token id {last} is beyond the limit of {ID_MAX}");
        return Err(ModelError::Malformed { path: dir.to_path_buf(), reason });
    }
    let mut tokens: Vec<Option<String>> = vec![None; last as usize + 1];
    for (token, id) in by_name {
        // Of two tokens with one id, the first in the order of names stands for both.
        tokens[id as usize].get_or_insert(token);
    }
    Ok(tokens.into_iter().enumerate().map(|(id, token)| token.unwrap_or_else(|| format!("[no token {id}]"))).collect())
}

impl Settings {
    fn read(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join(CONFIGURATION);
        let mut map = read_object(&path)?.unwrap_or_default();
        if !map.contains_key("added_tokens_decoder") {
            map.extend(read_object(&dir.join("special_tokens_map.json"))?.unwrap_or_default());
        }
        Ok(Self { path, map })
    }

    /// The name of a generic tokenizer class; `None` where BERT's rules hold.
    fn class(&self, dir: &Path) -> Result<Option<String>, ModelError> {
        let model = read_object(&dir.join("config.json"))?.unwrap_or_default();
        let named = |map: &Map<String, Value>| map.get("tokenizer_class").and_then(Value::as_str).map(str::to_owned);
        let Some(class) = named(&self.map).or_else(|| named(&model)) else { return Ok(None) };
        match class.strip_suffix("Fast").unwrap_or(&class) {
            "BertTokenizer" | "ElectraTokenizer" | "DistilBertTokenizer" => Ok(None),
            "BertJapaneseTokenizer" => Err(ModelError::Unsupported {
                path: self.path.clone(),
                reason: "BertJapaneseTokenizer cuts words with a morphological analyser, which is not supported"
                    .to_owned(),
            }),
            _ => Ok(Some(class)),
        }
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        Ok(self.optional_flag(key)?.unwrap_or(default))
    }

    fn optional_flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.malformed(format!("`{key}` is {other}; expected true or false"))),
        }
    }

    fn malformed(&self, reason: String) -> ModelError {
        ModelError::Malformed { path: self.path.clone(), reason }
    }

    fn normalizer(&self) -> Result<BertNormalizer, ModelError> {
        let chinese = self.flag("tokenize_chinese_chars", true)?;
        let lowercase = self.flag("do_lower_case", true)?;
        Ok(BertNormalizer::new(true, chinese, self.optional_flag("strip_accents")?, lowercase))
    }

    /// Each role's token, where there is one.
    fn role_names(&self, inner: &Tokenizer) -> BTreeMap<&'static str, String> {
        let configured = |role: &str| self.map.get(&format!("{role}_token")).and_then(content).map(str::to_owned);
        let of_the_model = |role: &str| match role {
            "unk" => word_piece(inner).map(|model| model.unk_token.clone()),
            _ => None,
        };
        ROLES
            .iter()
            .filter_map(|(role, default)| {
                let name = configured(role).or_else(|| of_the_model(role)).or_else(|| default.map(str::to_owned))?;
                Some((*role, name))
            })
            .collect()
    }

    /// Tokens that the folder lists as added, by ascending id.
    fn listed_tokens(&self, dir: &Path) -> Result<Vec<AddedToken>, ModelError> {
        let mut listed: BTreeMap<u32, AddedToken> = BTreeMap::new();
        if let Some(decoder) = self.map.get("added_tokens_decoder") {
            let decoder =
                decoder.as_object().ok_or_else(|| self.malformed("`added_tokens_decoder` is no object".into()))?;
            for (id, token) in decoder {
                let bad = || self.malformed(format!("`added_tokens_decoder`: entry `{id}` is not an added token"));
                listed.insert(id.parse().map_err(|_| bad())?, added_token(token, false).ok_or_else(bad)?);
            }
            return Ok(listed.into_values().collect());
        }
        let path = dir.join("added_tokens.json");
        for (name, id) in read_object(&path)?.unwrap_or_default() {
            let bad = || ModelError::Malformed { path: path.clone(), reason: format!("`{name}` has no valid id") };
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(bad)?;
            let special = self.names_special(&name);
            listed.insert(id, AddedToken::from(name, special));
        }
        Ok(listed.into_values().collect())
    }

    fn names_special(&self, name: &str) -> bool {
        let is_it = |value: &Value| content(value) == Some(name);
        ROLES.iter().any(|(role, _)| self.map.get(&format!("{role}_token")).is_some_and(is_it))
            || self.extra_tokens().any(is_it)
    }

    fn extra_tokens(&self) -> impl Iterator<Item = &Value> {
        let extra = match self.map.get("extra_special_tokens") {
            Some(Value::Array(extra)) if extra.is_empty() => None,
            other => other,
        };
        let extra = extra.or_else(|| self.map.get("additional_special_tokens"));
        let list: Vec<&Value> = match extra {
            Some(Value::Array(list)) => list.iter().collect(),
            Some(Value::Object(map)) => map.values().collect(),
            _ => Vec::new(),
        };
        list.into_iter()
    }

    /// Special tokens that are named somewhere but not yet added: the roles, `…_token` keys of this model, and extra ones.
    fn named_tokens(&self, names: &BTreeMap<&'static str, String>, inner: &Tokenizer) -> Vec<AddedToken> {
        let known: Vec<String> = inner
            .get_added_tokens_decoder()
            .into_values()
            .filter(|token| token.special)
            .map(|token| token.content)
            .collect();
        let is_role = |key: &str| ROLES.iter().any(|(role, _)| key.strip_suffix("_token") == Some(role));
        let mut tokens = Vec::new();
        for (role, _) in ROLES {
            if let Some(name) = names.get(role) {
                let value = self.map.get(&format!("{role}_token")).cloned().unwrap_or_else(|| name.as_str().into());
                tokens.extend(added_token(&value, true));
            }
        }
        let others =
            self.map.iter().filter(|(key, _)| key.ends_with("_token") && !is_role(key)).map(|(_, value)| value);
        tokens.extend(others.chain(self.extra_tokens()).filter_map(|value| added_token(value, true)));
        tokens.retain(|token| !known.contains(&token.content));
        tokens
    }
}

fn special_tokens(
    inner: &Tokenizer,
    names: &BTreeMap<&'static str, String>,
    path: &Path,
) -> Result<SpecialTokens, ModelError> {
    let id = |role: &'static str| {
        let name = names.get(role).map_or("", String::as_str);
        let missing = || ModelError::NoSpecialToken { path: path.to_path_buf(), role, token: name.to_owned() };
        inner.token_to_id(name).ok_or_else(missing)
    };
    Ok(SpecialTokens { pad: id("pad")?, unk: id("unk")?, cls: id("cls")?, sep: id("sep")?, mask: id("mask")? })
}

/// A token is written as a string, or as an object with its properties.
fn content(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content").and_then(Value::as_str))
}

fn added_token(value: &Value, special: bool) -> Option<AddedToken> {
    let flag = |key: &str, default: bool| value.get(key).and_then(Value::as_bool).unwrap_or(default);
    let special = special || flag("special", false);
    let token = AddedToken::from(content(value)?, special);
    let normalized = flag("normalized", token.normalized);
    Some(
        token
            .single_word(flag("single_word", false))
            .lstrip(flag("lstrip", false))
            .rstrip(flag("rstrip", false))
            .normalized(normalized),
    )
}

/// A BertTokenizer takes only the vocabulary and the added tokens from `tokenizer.json`; the rest follows from its settings.
fn bert_from_json(json: &Value, path: &Path, settings: &Settings) -> Result<Tokenizer, ModelError> {
    let malformed = |reason: String| ModelError::Malformed { path: path.to_path_buf(), reason };
    check_word_piece(json, path)?;
    let vocabulary = json.pointer("/model/vocab").and_then(Value::as_object);
    let vocabulary = vocabulary.ok_or_else(|| malformed("`model.vocab` is no object".to_owned()))?;
    let mut ids = Vec::with_capacity(vocabulary.len());
    for (token, id) in vocabulary {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        ids.push((token.clone(), id.ok_or_else(|| malformed(format!("token `{token}` has no valid id")))?));
    }
    let normalizer = serde_json::to_value(settings.normalizer()?).unwrap_or_default();
    if let Some(stored) = json.get("normalizer").filter(|stored| **stored != normalizer) {
        tracing::warn!(
            file = %path.display(),
            %stored,
            used = %normalizer,
            "like transformers, normalising by {CONFIGURATION} (or BERT's defaults), not as tokenizer.json says"
        );
    }
    let mut inner = bert(ids, settings, path)?;
    if !settings.map.contains_key("added_tokens_decoder") {
        let added = json.get("added_tokens").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let id = |token: &Value| token.get("id").and_then(Value::as_u64);
        let mut added: Vec<&Value> = added.iter().collect();
        added.sort_by_key(|token| id(token));
        let tokens: Option<Vec<AddedToken>> = added.into_iter().map(|token| added_token(token, false)).collect();
        let tokens = tokens.ok_or_else(|| malformed("`added_tokens` holds something else".to_owned()))?;
        inner.add_tokens(tokens).map_err(|error| malformed(error.to_string()))?;
    }
    Ok(inner)
}

/// A tokenizer of BERT's making, without added tokens.
fn bert(
    vocabulary: impl IntoIterator<Item = (String, u32)>,
    settings: &Settings,
    path: &Path,
) -> Result<Tokenizer, ModelError> {
    let malformed = |reason: String| ModelError::Malformed { path: path.to_path_buf(), reason };
    let unknown = settings.map.get("unk_token").and_then(content).unwrap_or("[UNK]").to_owned();
    let vocabulary: Map<String, Value> = vocabulary.into_iter().map(|(token, id)| (token, id.into())).collect();
    let model = json!({
        "type": "WordPiece",
        "unk_token": unknown,
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": vocabulary,
    });
    let model = WordPiece::from_bytes(model.to_string()).map_err(|error| malformed(error.to_string()))?;
    let mut inner = Tokenizer::new(model);
    inner
        .with_normalizer(Some(settings.normalizer()?))
        .map_err(|error| malformed(error.to_string()))?
        .with_pre_tokenizer(Some(BertPreTokenizer))
        .with_decoder(Some(WordPieceDecoder::default()));
    Ok(inner)
}

/// Whatever `tokenizer.json` says, as long as it is WordPiece.
fn generic(mut json: Value, path: &Path) -> Result<Tokenizer, ModelError> {
    let malformed = |reason: String| ModelError::Malformed { path: path.to_path_buf(), reason };
    check_word_piece(&json, path)?;
    if let Some(object) = json.as_object_mut() {
        // Neither has a part in the ids of a text; another version's may not be readable.
        for key in ["truncation", "padding", "post_processor"] {
            object.insert(key.to_owned(), Value::Null);
        }
    }
    let inner = Tokenizer::from_bytes(json.to_string()).map_err(|error| malformed(error.to_string()))?;
    if word_piece(&inner).is_none_or(|model| model.get_vocab_size() == 0) {
        return Err(malformed("its WordPiece vocabulary is empty".to_owned()));
    }
    Ok(inner)
}

fn check_word_piece(json: &Value, path: &Path) -> Result<(), ModelError> {
    let kind = json.pointer("/model/type").and_then(Value::as_str);
    let looks_like_it = json.pointer("/model/continuing_subword_prefix").is_some();
    match kind {
        Some("WordPiece") => Ok(()),
        None if looks_like_it => Ok(()),
        other => Err(ModelError::Unsupported {
            path: path.to_path_buf(),
            reason: format!("a tokenizer of type {}; only WordPiece is supported", other.unwrap_or("unknown")),
        }),
    }
}

/// One token a line; its id is the line's number, from 0. Of equal lines the last one counts.
fn read_vocabulary(dir: &Path, path: &Path) -> Result<Vec<(String, u32)>, ModelError> {
    if !path.is_file() {
        std::fs::read_dir(dir).map_err(|source| ModelError::Read { path: dir.to_path_buf(), source })?;
        let looked_for = format!("{TOKENIZER}, {VOCABULARY}");
        return Err(ModelError::NoTokenizer { dir: dir.to_path_buf(), looked_for });
    }
    let text = std::fs::read_to_string(path).map_err(|source| ModelError::Read { path: path.to_path_buf(), source })?;
    let mut ids = BTreeMap::new();
    for (id, line) in text.lines().enumerate() {
        ids.insert(line.trim_end().to_owned(), id as u32);
    }
    Ok(ids.into_iter().collect())
}

fn read_object(path: &Path) -> Result<Option<Map<String, Value>>, ModelError> {
    match read_json(path)? {
        None => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(_) => Err(ModelError::Malformed { path: path.to_path_buf(), reason: "expected a JSON object".to_owned() }),
    }
}

fn read_json(path: &Path) -> Result<Option<Value>, ModelError> {
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(path).map_err(|source| ModelError::Read { path: path.to_path_buf(), source })?;
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|error| ModelError::Malformed { path: path.to_path_buf(), reason: error.to_string() })
}
