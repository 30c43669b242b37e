//! Which of this machine's addresses and interfaces another machine is reached by. A host's own name says nothing of that:
//! on many it means the loopback.

use std::{
    ffi::CStr,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _, UdpSocket},
    ptr,
};

use anyhow::{Context, Result};

/// The address of this machine from which `host` is reached; of a name of its own, that address itself.
///
/// # Errors
/// The name is not known, or no way leads there.
pub fn to(host: &str) -> Result<IpAddr> {
    let of = |target: SocketAddr| -> io::Result<IpAddr> {
        let any = if target.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0))?;
        // Nothing is sent: the kernel looks the way up.
        socket.connect(target)?;
        Ok(socket.local_addr()?.ip())
    };
    let targets = (host, 9).to_socket_addrs().with_context(|| format!("the name `{host}` is not known here"))?;
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for target in targets {
        match of(target) {
            Ok(address) => return Ok(address),
            Err(error) => last = error,
        }
    }
    Err(last).with_context(|| format!("no way leads from here to {host}"))
}

/// The network interface that has an address: `eth0`.
#[must_use]
pub fn interface(address: IpAddr) -> Option<String> {
    let mut list = ptr::null_mut();
    // SAFETY: the list is made by the call, read only as long as it lives, and freed once.
    unsafe {
        if libc::getifaddrs(&mut list) != 0 {
            return None;
        }
        let mut found = None;
        let mut next = list;
        while let (None, Some(entry)) = (&found, next.as_ref()) {
            next = entry.ifa_next;
            let Some(has) = entry.ifa_addr.as_ref() else { continue };
            let its = match i32::from(has.sa_family) {
                libc::AF_INET => {
                    let v4 = ptr::from_ref(has).cast::<libc::sockaddr_in>().read_unaligned();
                    IpAddr::from(u32::from_be(v4.sin_addr.s_addr).to_be_bytes())
                }
                libc::AF_INET6 => {
                    IpAddr::from(ptr::from_ref(has).cast::<libc::sockaddr_in6>().read_unaligned().sin6_addr.s6_addr)
                }
                _ => continue,
            };
            if its == address {
                found = Some(CStr::from_ptr(entry.ifa_name).to_string_lossy().into_owned());
            }
        }
        libc::freeifaddrs(list);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_leads_to_itself() {
        let loopback = to("127.0.0.1").unwrap();
        assert!(loopback.is_loopback());
        assert_eq!(interface(loopback).as_deref(), Some("lo"));
        assert_eq!(interface("192.0.2.1".parse().unwrap()), None);
        assert!(to("no such host").is_err());
    }
}
