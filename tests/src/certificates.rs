//! Certificates of authorities of our own, for what speaks mutual TLS.

use std::path::Path;
use std::process::Command;

use crate::process::run_command;

const SCRIPT: &str = r#"
    set -e
    ca() { openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=$1" \
        -keyout $1.key -out $1.pem -addext basicConstraints=critical,CA:TRUE; }
    leaf() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" -keyout $1.key -out $1.csr
        printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\n' >$1.ext
        openssl x509 -req -in $1.csr -CA $2.pem -CAkey $2.key -CAcreateserial -days 2 -extfile $1.ext -out $1.pem; }
    ca ca; ca stranger-ca; leaf server ca; leaf client ca; leaf stranger stranger-ca
"#;

/// Fills a folder with two authorities, `ca` and `stranger-ca`, and certificates for localhost and 127.0.0.1 with their
/// keys: `server` and `client` of the one, `stranger` of the other.
///
/// # Panics
/// If openssl cannot make them.
pub fn make(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut command = Command::new("bash");
    command.args(["-c", SCRIPT]).current_dir(folder);
    run_command(&mut command).unwrap_or_else(|e| panic!("certificates: {e}"));
}
