//! [`Store`]: a small key-value store that all ranks reach; rank 0 serves it.

use std::{
    ffi::c_char,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener},
    os::fd::{FromRawFd as _, IntoRawFd, RawFd},
    ptr::{self, NonNull},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::ffi::{self, CStore, c_string, call};

/// A connection to the store (c10d's `TCPStore`). A call that waits blocks the connection: a thread that watches needs
/// its own.
#[derive(Debug)]
pub struct Store(NonNull<CStore>);

// SAFETY: TCPStore serialises its operations by a mutex; the pointer is freed once, by Drop.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Store {
    /// Opens the store at `host:port`; with `serve` this process holds it. A client retries until `timeout`. Where `host`
    /// is this machine's loopback, the store listens there alone: no other machine can reach it.
    ///
    /// # Errors
    /// The port is taken, or nobody serves there in time.
    pub fn open(host: &str, port: u16, serve: bool, world_size: usize, timeout: Duration) -> Result<Self> {
        let name = c_string(host)?;
        let listener = serve.then(|| inherited().map_or_else(|| listen(host, port), Ok)).transpose()?;
        let mut store = ptr::null_mut();
        call(|error| {
            // SAFETY: all pointers are valid for the call.
            unsafe {
                ffi::flow_store_open(
                    name.as_ptr(),
                    port,
                    listener.map_or(-1, IntoRawFd::into_raw_fd),
                    world_size,
                    millis(timeout),
                    &mut store,
                    error,
                )
            }
        })
        .with_context(|| {
            if serve {
                format!("rank 0 cannot open its store on port {port}")
            } else {
                format!("cannot reach rank 0's store at {host}:{port}")
            }
        })?;
        Ok(Self(NonNull::new(store).context("libtorch returned no store")?))
    }

    pub(crate) fn as_ptr(&self) -> *mut CStore {
        self.0.as_ptr()
    }

    /// Sets a key.
    ///
    /// # Errors
    /// The store is gone.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        let key = c_string(key)?;
        // SAFETY: all pointers are valid for the call.
        call(|error| unsafe { ffi::flow_store_set(self.as_ptr(), key.as_ptr(), value.as_ptr(), value.len(), error) })
    }

    /// The value of a key, waiting for it for at most `timeout`.
    ///
    /// # Errors
    /// The key did not come in time, or the store is gone.
    pub fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>> {
        let name = c_string(key)?;
        let (mut bytes, mut length) = (ptr::null_mut(), 0);
        // SAFETY: all pointers are valid for the call.
        call(|error| unsafe {
            ffi::flow_store_get(self.as_ptr(), name.as_ptr(), millis(timeout), &mut bytes, &mut length, error)
        })?;
        // SAFETY: the shim allocated `length` bytes (and one more) by malloc, and they are now ours.
        unsafe {
            let value = std::slice::from_raw_parts(bytes, length).to_vec();
            ffi::flow_free(bytes.cast::<c_char>());
            Ok(value)
        }
    }

    /// Whether a key is set.
    ///
    /// # Errors
    /// The store is gone.
    pub fn has(&self, key: &str) -> Result<bool> {
        let key = c_string(key)?;
        let mut has = 0;
        // SAFETY: all pointers are valid for the call.
        call(|error| unsafe { ffi::flow_store_has(self.as_ptr(), key.as_ptr(), &mut has, error) })?;
        Ok(has != 0)
    }

    /// Adds to a counter (0 at first) and returns its new value.
    ///
    /// # Errors
    /// The store is gone.
    pub fn add(&self, key: &str, amount: i64) -> Result<i64> {
        let key = c_string(key)?;
        let mut sum = 0;
        // SAFETY: all pointers are valid for the call.
        call(|error| unsafe { ffi::flow_store_add(self.as_ptr(), key.as_ptr(), amount, &mut sum, error) })?;
        Ok(sum)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: made by flow_store_open, freed here alone.
        unsafe { ffi::flow_store_close(self.as_ptr()) }
    }
}

/// The variable that names the socket on which whoever started this process listens for it already: a port that is known
/// before cannot be taken by another in between.
pub const LISTENS: &str = "FLOW_STORE_FD";

fn inherited() -> Option<TcpListener> {
    let number: RawFd = std::env::var(LISTENS).ok()?.parse().ok()?;
    // SAFETY: the variable is set together with a socket of that number, for this process alone, which has one store.
    Some(unsafe { TcpListener::from_raw_fd(number) })
}

/// Listens on the port, at the loopback if that is where the store is looked for.
///
/// # Errors
/// The port is taken.
pub fn listen(host: &str, port: u16) -> Result<TcpListener> {
    let everywhere = IpAddr::from(Ipv6Addr::UNSPECIFIED);
    let address = if is_loopback(host) { IpAddr::from(Ipv4Addr::LOCALHOST) } else { everywhere };
    TcpListener::bind((address, port))
        .or_else(|error| match address {
            // A host without IPv6.
            IpAddr::V6(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)),
            IpAddr::V4(_) => Err(error),
        })
        .with_context(|| format!("rank 0 cannot open its store on port {port}"))
}

/// Whether a host's name is the loopback's.
pub(crate) fn is_loopback(host: &str) -> bool {
    host == "localhost" || host == "127.0.0.1"
}

pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
