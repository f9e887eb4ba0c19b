//! Every code that an error may have. A code is stable: it is never given another meaning, and always comes with the same status.
//!
//! The list is part of the OpenAPI document. A test holds it against the sources of this crate and of the daemon.

/// A code, the HTTP status that it comes with, and what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// Name, `like_this`.
    pub name: &'static str,
    /// HTTP status.
    pub status: u16,
    /// For people who write clients.
    pub meaning: &'static str,
}

const fn code(status: u16, name: &'static str, meaning: &'static str) -> Code {
    Code { name, status, meaning }
}

/// All of them, by status.
pub const CODES: &[Code] = &[
    code(400, "invalid_body", "The body is not JSON, not an object, or says something that the command does not take."),
    code(400, "invalid_corpus", "The section of a corpus is not one that can be read."),
    code(400, "invalid_key", "The Idempotency-Key is too long, there twice or not printable ASCII."),
    code(400, "invalid_level", "That is no level and no filter of the log."),
    code(400, "invalid_out", "Nothing can be written to the folder that was named."),
    code(400, "invalid_path", "Path or query are not UTF-8 in percent encoding."),
    code(
        400,
        "invalid_query",
        "The query has a parameter that is not known, is there twice or has a value that it cannot have.",
    ),
    code(400, "invalid_retention", "So much of the log cannot be kept: whole segments are removed."),
    code(400, "invalid_share", "A share is above 0 and at most 1, and all of them leave room for the others."),
    code(400, "invalid_teacher", "The section of a teacher is not one that can be used."),
    code(401, "token_needed", "On TCP this takes the token."),
    code(403, "control_needs_socket", "There is no token, so commands are taken on the unix socket alone."),
    code(403, "foreign_host", "The Host is not this machine: another name was made to lead here."),
    code(403, "foreign_origin", "The request comes from a page of another origin."),
    code(403, "read_only", "This user may read, not change."),
    code(404, "not_found", "There is nothing at this path."),
    code(404, "unknown_corpus", "There is no such corpus, or none that takes this."),
    code(404, "unknown_language", "There is no such language."),
    code(404, "unknown_operation", "No operation of this process has this identifier, or it was long ago."),
    code(404, "unknown_teacher", "There is no such teacher."),
    code(405, "method_not_allowed", "The path is there, the method is not; Allow says which are."),
    code(408, "read_timeout", "The body did not arrive in time, or came too slowly."),
    code(409, "cannot_branch", "A release cannot begin from the newest checkpoint."),
    code(409, "corpus_exists", "There is a corpus of this name."),
    code(409, "corpus_is_piped", "What comes through a pipe cannot be changed while the daemon runs."),
    code(409, "draining", "A drain is under way."),
    code(409, "ingest_ended", "All input has ended."),
    code(409, "last_corpus", "The last corpus cannot be removed; pause it."),
    code(409, "no_corpus", "This run reads nothing."),
    code(409, "no_file", "This run was started without a configuration file."),
    code(409, "no_release", "No release runs."),
    code(409, "no_student", "This run trains nothing."),
    code(409, "release_running", "A release runs already."),
    code(409, "resumed", "Ingest was resumed before a drain was done."),
    code(409, "teacher_exists", "There is a teacher of this name."),
    code(409, "teacher_paused", "The teachers are paused, so nothing can be drained."),
    code(409, "trainer_ended", "Training has ended, or takes no requests now."),
    code(412, "changed_meanwhile", "Something was changed since the revision in If-Match."),
    code(413, "body_too_large", "The body has more bytes than are taken at once."),
    code(415, "unsupported_media_type", "The body is of a type, charset or encoding that is not taken here."),
    code(422, "invalid_configuration", "Something is wrong with the configuration file; the message says all that is."),
    code(500, "failed", "The daemon could not do it; the message says why."),
    code(500, "internal", "This is a bug; the log says more."),
    code(503, "busy", "As much is being done as may be at a time; try again."),
    code(503, "inbox_failed", "The inbox takes nothing any more: its disk failed."),
    code(503, "inbox_full", "The inbox holds as much as it may until more is labelled."),
    code(503, "not_alive", "The daemon has failed and has to be restarted."),
    code(503, "not_ready", "Not everything runs."),
    code(503, "renewing", "The stages are being opened anew; ask again in a moment."),
    code(503, "stopping", "The daemon is stopping."),
    code(503, "too_many_connections", "As many connections are open as may be."),
    code(503, "too_many_subscribers", "As many read the events as may."),
    code(504, "timeout", "The daemon, or its trainer, has not answered in time; what was asked for may still happen."),
    code(507, "no_space", "The disk is full."),
];
