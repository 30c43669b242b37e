//! `flow ui`

use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use flow_core::Diagnostic;

use super::{Done, open_here};
use crate::{
    args,
    failure::Failure,
    interrupt,
    live::{Guard, Hub, server},
    out,
};

/// Where it listens if nothing is said; any other port if another program does so there.
const PORT: u16 = 4750;
/// It is looked so often whether it was interrupted.
const BEAT: Duration = Duration::from_millis(25);

/// Shows runs in a browser until it is interrupted.
pub fn ui(args: &args::Ui) -> Done {
    let (_, cache) = open_here()?;
    let cancel = interrupt::watch().context("signals")?;
    let listener = listen(args)?;
    let address = listener.local_addr().context("the address")?;
    let guard = Arc::new(Guard::of(address)?);
    let hub = Arc::new(Hub::default());
    let (reader, runs) = (Arc::clone(&hub), cache.clone());
    // It ends with the process: it writes nothing.
    std::thread::Builder::new().name("runs".into()).spawn(move || reader.work(&cache)).context("a thread")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the server")?;
    let query = guard.query();
    runtime.block_on(async {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        tokio::spawn(server::serve(listener, hub, guard, runs));
        out::line(format!("http://{}/{query}", shown(address)))?;
        eprintln!("it shows runs and changes nothing; Ctrl-C ends it");
        while !cancel.is_set() {
            tokio::time::sleep(BEAT).await;
        }
        anyhow::Ok(())
    })?;
    runtime.shutdown_background();
    Err(Failure::Interrupted)
}

fn listen(args: &args::Ui) -> Result<TcpListener, Failure> {
    let host = args.host.as_str();
    let refused = |error: std::io::Error| {
        let port = args.port.unwrap_or(PORT);
        let wrong = Diagnostic::new(format!("cannot listen on {host}, port {port}: {error}"));
        Failure::Pipeline(vec![
            wrong.hint("--port 0 takes any port that is free; --host is an address of this machine"),
        ])
    };
    match args.port {
        Some(port) => TcpListener::bind((host, port)).map_err(refused),
        None => TcpListener::bind((host, PORT)).or_else(|_| TcpListener::bind((host, 0))).map_err(refused),
    }
}

/// The address as a browser on this machine takes it: all of its addresses are shown as this machine's name.
fn shown(address: SocketAddr) -> String {
    if !address.ip().is_unspecified() {
        return address.to_string();
    }
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = if name.trim().is_empty() { "localhost" } else { name.trim() };
    format!("{name}:{}", address.port())
}
