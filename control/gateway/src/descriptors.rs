//! Open files: as many as the clients that are let in may need, or fewer clients.

use culvert_nbd::Limits;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::{debug, warn};

/// File descriptors for all but clients: the cache, lanes, sockets that are listened on, and what the store takes
/// for reads and uploads under way. Where few are allowed it is half of them.
const OTHERS: u64 = 1024;

/// Raises this process' limit on open files if `limits` need more. Where that is not allowed, lets in fewer clients:
/// those that there are keep theirs, and the cache and the store too.
pub fn fit(limits: Limits) -> Limits {
    let wanted = (limits.max_connections as u64)
        .saturating_add(limits.max_handshakes as u64)
        .saturating_add(OTHERS);
    let allowed = match raise(wanted) {
        Ok(allowed) => allowed,
        Err(e) => {
            warn!("cannot tell how many open files are allowed: {e}");
            return limits;
        }
    };
    let fitted = fewer(limits, allowed);
    if fitted.max_connections < limits.max_connections {
        warn!(
            "only {allowed} open files are allowed: at most {} clients are served at a time, not {}; \
             allow {wanted} (`ulimit -n`, or LimitNOFILE= of the unit)",
            fitted.max_connections, limits.max_connections
        );
    }
    fitted
}

/// Sees to it that `wanted` files may be open if that is allowed. Returns how many may be.
fn raise(wanted: u64) -> nix::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft >= wanted || soft >= hard {
        return Ok(soft);
    }
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => {
            debug!(from = soft, to = hard, "more files may be open");
            Ok(hard)
        }
        Err(e) => {
            warn!("the limit of {soft} open files cannot be raised to {hard}: {e}");
            Ok(soft)
        }
    }
}

/// The limits, or where so many descriptors do not do for them, with fewer clients and handshakes at a time.
fn fewer(limits: Limits, descriptors: u64) -> Limits {
    let left = descriptors - OTHERS.min(descriptors / 2);
    let left = usize::try_from(left).unwrap_or(usize::MAX);
    if left >= limits.max_connections.saturating_add(limits.max_handshakes) {
        return limits;
    }
    let max_handshakes = limits.max_handshakes.min((left / 8).max(1));
    let max_connections = limits.max_connections.min(left.saturating_sub(max_handshakes).max(1));
    Limits { max_connections, max_handshakes, ..limits }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fitted(descriptors: u64) -> (usize, usize) {
        let limits = fewer(Limits::default(), descriptors);
        (limits.max_connections, limits.max_handshakes)
    }

    #[test]
    fn clients_leave_descriptors_to_everything_else() {
        assert_eq!(fitted(u64::MAX), (1024, 128));
        assert_eq!(fitted(1024 + 1024 + 128), (1024, 128));
        assert_eq!(fitted(1024 + 1024 + 127), (1023, 128));
        assert_eq!(fitted(1024), (448, 64));
        assert_eq!(fitted(200), (88, 12));
        for few in 0..4 {
            assert_eq!(fitted(few), (1, 1));
        }
        for descriptors in (8..4096).step_by(7) {
            let (connections, handshakes) = fitted(descriptors);
            let clients = (connections + handshakes) as u64;
            assert!(clients <= descriptors - OTHERS.min(descriptors / 2), "{descriptors}");
        }
    }
}
