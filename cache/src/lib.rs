//! The cache: results by key, files by content, and memos of what was already hashed.
//!
//! Files are the truth. A result is a record `results/ab/<key>.json` that names objects `objects/ab/<digest>`; it is
//! there whole or not at all, because objects come first and the record is renamed into place last. Everything else
//! (the index, the per-pipeline memos, the views) is made from these and may be deleted at any time.
//!
//! ```text
//! objects/ab/<digest>[.x]   files by content, read-only; .x may be executed
//! results/ab/<key>.json     what a key's result is, and what it was made from
//! trees/ab/<digest>/        views: directories of symbolic links to objects
//! scratch/<key>/            work in progress; <key>.tmp/ when a later run could not go on from it; <key>.out/ results
//! scratch/guards/           the stages': what a killed flow left running, and who ends it
//! locks/                    kernel locks: <key>, GPUs, the gate (see `holds`), what running flows use
//! state/                    memos: index/ (sled) and one file a pipeline; team/<remote>/ (see `remote`)
//! quarantine/               what was found damaged
//! pins/                     what gc leaves alone, by key
//! runs/, jobs/              the engine's
//! tmp/                      files on their way
//! ```
//!
//! Nothing of pipelines, nodes or stages may enter here: keys and directories go in, trees come out.

mod cache;
mod claim;
mod commit;
mod devices;
mod fault;
mod files;
mod free;
mod gc;
mod hash;
mod holds;
mod index;
mod lock;
mod lookup;
mod memo;
mod paths;
mod pin;
mod place;
mod proof;
mod record;
mod remote;
mod spare;
mod trust;
mod verify;
mod view;
mod walk;
mod window;
mod witness;

pub use cache::Cache;
pub use claim::{Busy, Claim, ClaimOptions, Slot};
pub use devices::Devices;
pub use files::Unusable;
pub use gc::{GcItem, GcPolicy, GcReport, KindStats, Stats};
pub use lookup::{Found, Outcome};
pub use pin::Pin;
pub use place::Place;
pub use record::{Origin, ResultRecord};
pub use remote::{
    ARCHIVE, Archived, Location, PublicKey, Pushed, Remote, RemoteConfig, TeamResult, Trust, TrustedKey, Uploads,
    generate_key,
};
pub use verify::{BadRecord, Damaged, VerifyReport};
