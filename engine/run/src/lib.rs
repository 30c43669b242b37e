//! flow-engine: a pipeline file becomes a graph, the graph is walked, what is not in the cache is run.
//!
//! [`Project`] is a loaded file: `syntax` (TOML with places) → `load` (with `include`, `assign`, `params`, `matrix`) →
//! `link` (with `common`, `when`, `find`, `order`, `expand`) → [`Graph`]. Then [`run`], [`plan`], [`why`] and
//! [`outputs`] are asked of it; all of them decide about a node in `decide`, so that they agree; `unchanged` tells a run
//! in which nothing changed without loading. A run is `runner` (the loop) over `sched` (pure) with
//! `exec` (a node's life), `cluster` (that elsewhere) and `place` (files outside of the cache); what it leaves is `record`, read by [`History`].
//!
//! No stage kind is named here (the registry is handed in), and nothing is drawn.

mod above;
mod apart;
mod aside;
mod assign;
mod cause;
mod clash;
mod cluster;
mod common;
mod decide;
mod exec;
mod expand;
mod exports;
mod find;
mod frozen;
mod graph;
mod heads;
mod history;
mod include;
mod kept;
mod lacks;
mod ledger;
mod link;
mod load;
mod lockfile;
mod looks;
mod matrix;
mod need;
mod network_settings;
mod obstacles;
mod old_runs;
mod order;
mod outside;
mod params;
mod pieces;
mod place;
mod plan;
mod profiles;
mod project;
mod record;
mod remote_settings;
mod run_head;
mod run_id;
mod runner;
mod sched;
mod schema;
mod select;
mod settings;
mod summary;
mod syntax;
mod taken;
mod team;
mod unchanged;
mod verdict;
mod when;
mod why;

pub use apart::apart;
pub use cause::Cause;
pub use cluster::{ClusterJob, Executor, ExecutorFile, Executors, Stop, Told, cancel_jobs, end_jobs, jobs, run_job};
pub use common::{Common, Resources};
pub use graph::{Graph, Node, NodeId, PortInputs, Source, StageId, StageInfo, Variant};
pub use history::{History, Measured, NodeRecord, RunInfo};
pub use kept::Past;
pub use load::{LoadOptions, Outline, outline};
pub use lockfile::{LOCK_FILE, LockFile};
pub use obstacles::{Obstacles, obstacles, obstacles_of_all};
pub use old_runs::Use;
pub use plan::{Holdings, holdings, outputs, plan};
pub use profiles::check_profiles;
pub use project::{Checked, Project, project_dir};
pub use remote_settings::RemoteSettings;
pub use run_head::{RunHead, StageHead};
pub use runner::run;
pub use schema::schema;
pub use select::RunOptions;
pub use settings::{SETTINGS_FILE, Settings};
pub use summary::{RunError, Summary};
pub use unchanged::{Asked, unchanged};
pub use verdict::{Download, Expected, Left, Need, Plan, Planned, Verdict};
pub use why::{Change, Previous, Why, changes, why};
