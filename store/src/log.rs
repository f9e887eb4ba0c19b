//! The log: a folder of segments, each a sequence of blocks, each a group of entries.
//!
//! [`LogWriter`] appends blocks and makes them durable, [`LogReader`] reads entries by sequence number or language by
//! language, [`stat`] counts and [`verify`] checks; [`copy`], [`merge`] and [`ExtendedLog`] write a new log from others, and [`Salvage`] reads past
//! damage. All of them may be used on a log that is being written; only the writer changes files.
//!
//! # Invariants
//!
//! - A block is appended whole or not at all; sequence numbers have no holes.
//! - `durable ≤ appended`. Readers never see past `durable`.
//! - Each block carries the checksum of the one before it, each segment header that of the last block before it:
//!   blocks and segments cannot be exchanged, repeated or left out unnoticed.
//! - A block is written with the durable position of that moment. So whoever finds it knows what must be there as well.
//! - A segment is created only when everything before it is durable, and its name and header are durable before
//!   anything is appended to it. A footer is written only when every block before it is durable.
//! - After a failed write or sync nothing is written any more; the first cause is repeated.
//! - No input makes this module panic, and none makes it allocate more than the file is long, or a column may be.
//!
//! # Folder
//!
//! ```text
//! <first sequence number, 20 digits>.seg      a segment
//! <first sequence number, 20 digits>.seg.tmp  a segment whose header is being written; removed by recovery
//! POSITION                                    how far the writer is, or came; locked while it lives; not needed for recovery
//! RETAINED                                    where the log begins, once retention has removed segments
//! RETAINED.tmp                                the same, being written; removed by recovery
//! torn/<segment>@<offset>[.<n>]               tails that recovery cut
//! ```
//!
//! # Bytes
//!
//! Little-endian throughout. `crc` is CRC-32 (IEEE). `varint` is LEB128 of at most 64 bits. A string is UTF-8.
//!
//! ## Segment
//!
//! Header, blocks, and a footer if the segment is sealed, without gaps. The frame of the header is the same in every
//! format version.
//!
//! ```text
//! header   0  8  magic "MDlogseg"
//!          8  4  format version: 4 if labels may be in something else than float32, else 3 if records may have text, else 2
//!         12  4  length L of the body, at most 64 MiB
//!         16  L  body: length J of the fields (4), the fields (J), tables; in version 1 the fields alone, without their length
//!       16+L  4  crc of everything before
//!
//! fields   a JSON object:
//!          first_sequence   number of the first entry, as in the file's name
//!          previous         null in the first segment of a log, else {last_sequence, checksum}: the last entry before this
//!                           segment, and the header checksum of the last block before it
//!          precision        "exact" or "compact"
//!          top_k            k
//!          keep_text        true if records may have text; absent if not, and in versions 1 and 2
//!          computed_in      true if labels may have been computed in something else than float32; absent if not, and before version 4
//!          identity         {settings, teachers}: what the log is made of; copies refer to teachers by index. A later
//!                           segment may have more teachers at the end
//!          cursors          the state of every source before the first entry, each with the fields of `SourceCursor`
//!
//! tables   none unless the precision is compact; else one zstd frame of, by teacher, twice the number of codes (varint) and the codes, a
//!          byte each, four for every doubling: how often token ids of the top-k were coded by their frequency in the segment
//!          before (below), and how often token ids came in its text
//!
//! footer   0  4  magic "MDft"
//!          4  4  length S of the body
//!          8  8  length of the body before compression
//!         16  4  number of blocks
//!         20  4  header checksum of the last block
//!         24  8  number of the entry after the last
//!         32  S  body: one zstd frame that holds the headers of all blocks, one after another
//!       32+S  4  crc of everything before
//!       36+S  4  length of the footer, S + 44
//!       40+S  4  magic "MDnd"
//! ```
//!
//! The footer is derived: without it the blocks are scanned.
//!
//! ## Block
//!
//! ```text
//! header   0  4  magic "MDbk"
//!          4  4  length H of the header, at most 1 MiB
//!          8  8  length of the payload
//!         16  8  number of the first entry
//!         24  4  header checksum of the block before (0 for the first of a log)
//!         28  4  number of entries, at least 1
//!         32  8  durable position of the log when the block was written, at most the number of the first entry
//!         40  4  records
//!         44  4  skips
//!         48  4  copies
//!         52  8  masked positions
//!         60  8  tokens of all copies
//!         68  4  flags, 0
//!         72  4  number of summary rows
//!         76  4  number of directory rows
//!         80     summary rows, by language, then held out or not: length of the language (2), held out 0 or 1 (2),
//!                records (4), language
//!                directory rows, by column: column (2), coding (2): 0 plain, 1 zstd, 2 range-coded; length before compression
//!                (4), at most 256 MiB; stored length (4), crc of the stored bytes (4)
//!        H-4  4  crc of everything before: the block's checksum
//! payload H      the columns' stored bytes, in the order of the directory
//! ```
//!
//! ## Columns
//!
//! An empty column is absent. zstd columns are one frame; those of float32 four, one per byte plane. A *table* of n rows holds
//! its columns one after another: the first, the key, as n varints; each other as n varints, zigzag of the difference
//! (modulo 2^64) to the same column in the previous row with the same key, or to 0. *Planes* hold n 32-bit words as n most
//! significant bytes, then n second bytes, third, fourth. Strings are referred to by their number in column 1.
//!
//! ```text
//!  1 strings           varint length and bytes of each string
//!  2 kinds             one byte per entry: 0 record, 1 skip, 2 end, 3 record with text
//!  3 cursors           table, a row per entry: source, language, file, document offset, next byte + 1 (modulo 2^64), round,
//!                      characters available, ended 0 or 1
//!  4 records           table, a row per record: source, document, language, first byte (less the last byte + 1 of the previous
//!                      record of that source in this block if it is of the same document; modulo 2^64), length, round, held
//!                      out 0 or 1, number of copies
//!  5 skips             table, a row per skip: reason, document
//!  6 copies            table, a row per copy: teacher, tokens, masked positions, 0 without a label or k + 1 with one
//!
//!    The columns below take copies by teacher, then in order of appearance:
//!  7 token_ids         varints; absent with compact precision
//!  8 masked_positions  varints: the first position of a copy, then distances
//!  9 gold_ranks        labelled copies alone, a varint per position: r < k: the gold id is the r-th of the top-k, and so is its
//!                      logit; k: it is not among them; k + 1 + r: it is the r-th, with another logit
//! 10 gold_ids          varints, of unlabelled copies and where the rank is k
//! 11 top_ids           varints, k per position: by descending logit, but what was drawn from a tail (`store.tail_samples`) stands
//!                      last, by ascending id
//! 12 top_logits        planes, k per position: the bits of the first logit, then bits of the one before less bits of this one
//!                      (modulo 2^32: one that was drawn may be larger than the one before)
//! 13 log_sum_exp       planes: bits
//! 14 gold_logits       planes: bits, where the rank is k or more
//! 15 token_ranks       with compact precision alone: varints, the place of each token id when those that the segment's tables know are
//!                      sorted by their codes, the largest first, then by id; ids that they do not know stand for themselves
//!
//! 16 texts             of records with text, in order: the UTF-8 bytes of the document that the record covers, so each text is as long as
//!                      its record's span
//! 17 computed_in       of labelled copies, a byte each: 0 float32, 1 bfloat16, 2 float16; absent where all are float32
//! ```
//!
//! ## Range-coded columns
//!
//! With compact precision columns 8 to 14 are range-coded, each by itself, as the queue of constriction 0.5 does it: 32-bit words of a
//! 64-bit state, probabilities in 28 bits. Their length before compression counts four bytes a number. Models adapt, and begin anew with
//! each teacher of a block. The order of decoding, and every model's alphabet and context, is in `log/codec`:
//!
//! ```text
//!    Of each teacher: the smallest size that all its ids are below (10 or 11), the placeholder: the token that most masked ones were
//!    replaced by (8), the lowest log-sum-exp in steps (13), the level (12). Then, of each copy:
//!  8 masked_positions  whether every placeholder is masked; if so, before each other masked token the number of those passed over that
//!                      are no placeholders; if not, whether each token is masked, until all masked ones are found
//! 12 top_logits        cells: the log-probability of each of the top-k in steps of 255/4096 nats, the first one, then distances,
//!                      known the rank and how much probability is left; then parts: where in its cell a value lies, in as many
//!                      parts as cells and level say
//! 13 log_sum_exp       in the same steps, above the lowest, known the size of the first cell
//! 11 top_ids           the first one among those that came behind the same token in this block, the others among those that came with
//!                      the same first one; what is not there by frequency: the weights of the segment's tables, and 32 for each time
//!                      that an id was coded so in this block, counted in turns
//!  9 gold_ranks        where the masked token can be seen: whether it is the gold one; else, or if not, the rank, or k
//! 10 gold_ids          of unlabelled copies, and where the rank is k: by frequency, as 11
//! 14 gold_logits       of a gold token that is not among the top-k: cells below the last of them
//! ```
//!
//! A log-probability and a log-sum-exp come back within 1/32. The parts are as fine as it takes for the distribution of the top-k and
//! the tail to be, on average over a teacher's positions in a block, within 2e-4 nats (Kullback–Leibler) of the teacher's; the writer
//! measures both before it writes, and refuses what cannot be held.
//!
//! ## POSITION
//!
//! ```text
//!  0  4  magic "MDps"
//!  4  8  appended: number of the next entry
//! 12  8  durable: number of the first entry that is not durable
//! 20  4  crc of everything before
//! ```
//!
//! The writer holds an exclusive advisory lock on the file while it lives, and overwrites it after each sync. A reader that
//! cannot get a shared lock knows that a writer is at work and sees what that one calls durable, or everything before the last
//! segment if the positions are unreadable; if it can, everything valid in the segments counts. So nobody goes on from a position that a crash left behind, and the
//! next writer overwrites it when recovery is done.
//!
//! ## RETAINED
//!
//! ```text
//!  0  4  magic "MDrt"
//!  4  8  number of the first entry of the log: a segment begins with it
//! 12  4  header checksum of the last block before it
//! 16  4  crc of everything before
//! ```
//!
//! Written under another name and renamed, durably, before the first segment below it is removed. Segments are removed the oldest first.
//! Their held-out records were copied before that, durably, to another log: one whose source, in its cursors, is `log`, the
//! document's offset the number of the entry here, and the next byte the number after it.
//!
//! # Recovery
//!
//! What is found, and what the writer ([`LogWriter::open`]) does about it. A reader draws the same conclusions and changes nothing;
//! for it a torn tail is not there. `N` is the number of the entry that would come next.
//!
//! | # | found | conclusion |
//! | --- | --- | --- |
//! | 1 | no segment | a new log: create the first segment |
//! | 2 | the last segment ends with a block or its header | go on in it, after writing and syncing once more what no block proves to be durable (after a failed sync it may be in the page cache alone) |
//! | 3 | the last segment ends with a footer | a clean stop: begin a new segment |
//! | 4 | torn tail: bytes after the last block (or footer) that are no valid block or footer, and behind them no footer and no block that was written when `N` was durable; zeroes, half a footer, and later unsynced blocks that overtook an earlier one too | cut, kept in `torn/`, reported |
//! | 5 | the same, but such a block or footer follows | corrupt, at the first invalid byte |
//! | 6 | a valid block with another sequence number or predecessor: hole, duplicate, block of another log | corrupt |
//! | 7 | the last segment has no valid header (cut short, zeroes, checksum), and holds no valid block or footer | moved to `torn/`, reported; its first entry was never appended |
//! | 8 | the same, but it holds one, or is not the last | corrupt |
//! | 9 | a segment does not begin with the magic, has another's first sequence number, or a name that is not 20 digits: a foreign file | corrupt |
//! | 10 | a newer format version, checksum intact | refused: newer version |
//! | 11 | a segment is missing: the blocks before end elsewhere than the next segment begins, or the log does not begin at 0 and no `RETAINED` says so | corrupt |
//! | 12 | a segment's predecessor is another than the one before it | corrupt |
//! | 13 | a segment that is not the last has no valid footer, but its blocks end where the next begins | scanned, reported, left as it is |
//! | 14 | the same, but its blocks end earlier | corrupt, at the first invalid byte |
//! | 15 | the log ends before what a checkpoint or the journal refers to | corrupt: too short; nothing is cut |
//! | 16 | settings or teachers differ | refused: identity; nothing is cut |
//! | 17 | teachers were appended, or k, precision or whether text is kept differ | seal the last segment and begin a new one; replace it if it is empty |
//! | 18 | `*.seg.tmp` | removed |
//! | 19 | damage inside the blocks of a sealed segment | not looked for; every read and [`verify`] finds it: corrupt |
//! | 20 | `RETAINED` says that the log begins at `B`, and a segment begins there that follows what it names | what was before is removed, nothing is missing |
//! | 21 | the same, and there are segments before `B` | an interrupted removal: not looked at; removed, when the name `RETAINED` is durable |
//! | 22 | the same, but no segment begins at `B`, it has no valid header, or it follows something else | corrupt |
//! | 23 | `RETAINED` has another length, magic or checksum | corrupt |
//! | 24 | `RETAINED.tmp` | removed |
//!
//! Nothing reads past damage but [`Salvage`], which has to be asked for (`--skip-corrupt`) and reports what is lost.

mod block;
mod cache;
mod codec;
mod column;
mod copying;
pub mod disk;
pub mod dump;
mod entries;
mod error;
mod extending;
mod hint;
mod index;
mod labels;
mod listing;
mod merging;
mod metrics;
mod mirror;
mod new_log;
mod options;
mod pass;
mod reader;
mod recovery;
mod retention;
mod room;
mod salvage;
mod segment;
mod shared;
mod stat;
mod survey;
mod validate;
mod verify;
mod wire;
mod writer;

pub use copying::{CopyOptions, CopyReport, copy};
pub use error::StoreError;
pub use extending::{ExtendedLog, Texts};
pub use listing::ListedSegment;
pub use merging::{MergeReport, MergedLog, merge};
pub use mirror::{LogMirror, Piece, Place, Taken};
pub use new_log::{LEFT_OUT, Written};
pub use options::{LogOptions, Precision};
pub use pass::{Pass, Progress};
pub use reader::LogReader;
pub use recovery::{Recovery, Torn};
pub use retention::{HeldBack, HeldOutLog, KeptRecord, Need, Needed, Retention, RetentionPass};
pub use salvage::{Loss, Salvage};
pub use stat::{LanguageStat, LogStat, PrecisionRange, TeacherStat, stat, stat_on, stat_with};
pub use verify::{Verification, verify, verify_on, verify_with};
pub use writer::{LogWriter, PreparedBlock};
