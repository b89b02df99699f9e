//! Clock and chance, which everything else is given.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::stored::JoinError;

/// Milliseconds since 1970 by this host's clock.
pub fn now_unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A random identifier.
///
/// # Errors
/// Where the kernel gives none.
pub fn random_id() -> Result<String, JoinError> {
    const FILE: &str = "/proc/sys/kernel/random/uuid";
    let id = std::fs::read_to_string(FILE);
    id.map(|id| id.trim().to_owned())
        .map_err(|error| JoinError::Memory { file: FILE.to_owned(), reason: error.to_string() })
}
