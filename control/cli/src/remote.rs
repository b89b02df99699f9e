//! The culvertd of another host, by mutual TLS.

use std::error::Error;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use culvert_socket::tls::Distrust;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::args::Args;
use crate::error::{CliError, Peer};

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Pings while a call waits for the other host.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// Where another host's culvertd listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remote {
    /// Name or address; one of IPv6 in brackets.
    host: String,
    port: u16,
}

impl FromStr for Remote {
    type Err = String;

    fn from_str(text: &str) -> Result<Remote, String> {
        let legal = "legal is HOST:PORT, as host-a:7473, 192.0.2.1:7473 or [2001:db8::1]:7473";
        let wrong = |what: &str| format!("{what}; {legal}");
        let (host, port) = text.rsplit_once(':').ok_or_else(|| wrong("no port"))?;
        let port = port.parse().ok().filter(|port| *port > 0);
        let port = port.ok_or_else(|| wrong("not a port"))?;
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_host = match inner {
            Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty()
                    && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            }
        };
        if !is_host {
            return Err(wrong("not a host"));
        }
        Ok(Remote { host: host.to_owned(), port })
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Remote {
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Connects, with the certificate that the flags name.
    pub(crate) async fn connect(&self, args: &Args) -> Result<Channel, CliError> {
        let (ca, certificate, key) = match (&args.tls_ca, &args.tls_cert, &args.tls_key) {
            (Some(ca), Some(certificate), Some(key)) => (ca, certificate, key),
            (ca, certificate, key) => {
                let flags = [("--tls-ca", ca), ("--tls-cert", certificate), ("--tls-key", key)];
                let missing: Vec<_> = flags
                    .iter()
                    .filter(|(_, file)| file.is_none())
                    .map(|(flag, _)| *flag)
                    .collect();
                return Err(CliError::Usage(format!(
                    "--remote {self}: {} missing: culvertd takes only clients with a certificate over the network",
                    missing.join(", ")
                )));
            }
        };
        let identity = Identity::from_pem(read(certificate)?, read(key)?);
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read(ca)?))
            .identity(identity);
        // What is no certificate is found when the first connection is made.
        let unusable = |error: tonic::transport::Error| {
            CliError::Usage(format!(
                "--tls-ca {}, --tls-cert {}, --tls-key {}: {}; legal are PEM files, the key that of the certificate",
                ca.display(),
                certificate.display(),
                key.display(),
                culvert_socket::root_cause(&error)
            ))
        };
        let endpoint = Endpoint::from_shared(format!("https://{self}")).map_err(unusable)?;
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(PING_INTERVAL)
            .tls_config(tls)
            .map_err(unusable)?;
        endpoint.connect().await.map_err(|error| self.unreachable(&error))
    }

    fn unreachable(&self, error: &tonic::transport::Error) -> CliError {
        let (who, at) = (Peer::Control, self.to_string());
        if let Some(reason) = distrust(error) {
            return CliError::Untrusted { at, reason };
        }
        match culvert_socket::io_error(error).map(std::io::Error::kind) {
            Some(std::io::ErrorKind::ConnectionRefused) => CliError::Absent { who, at },
            _ => CliError::Unreachable { who, at, reason: culvert_socket::root_cause(error) },
        }
    }
}

fn read(file: &Path) -> Result<Vec<u8>, CliError> {
    std::fs::read(file).map_err(|error| CliError::File { file: file.display().to_string(), error })
}

/// A connection that ended without an answer: a server of TLS 1.3 refuses a client when that has begun to speak, and
/// its alert may be lost.
pub(crate) fn ended(error: &(dyn Error + 'static)) -> String {
    format!(
        "the connection ended before the answer ({}): culvertd refused our certificate, or ended; legal is one that an authority in its `client_ca` signed",
        culvert_socket::root_cause(error)
    )
}

/// What one of the two ends has against the other's certificate, if that is why there is no connection.
pub(crate) fn distrust(error: &(dyn Error + 'static)) -> Option<String> {
    Some(match culvert_socket::tls::distrust(error)? {
        Distrust::Refused(alert) => format!(
            "culvertd refused our certificate ({alert}); legal is one that an authority in its `client_ca` signed, and that is valid now"
        ),
        Distrust::UnknownAuthority => "the certificate there is signed by none of the authorities in --tls-ca: this is another host, or that is another authority".to_owned(),
        Distrust::OtherName(why) => {
            format!("the certificate there is of another name: {why}; name the host as its certificate does")
        }
        Distrust::Invalid(why) => format!("the certificate there is not valid: {why}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_a_port() {
        for legal in ["host-a:7473", "192.0.2.1:1", "[2001:db8::1]:65535", "a.example.org:80"] {
            assert_eq!(legal.parse::<Remote>().unwrap().to_string(), legal);
        }
        for (text, says) in [
            ("host-a", "no port"),
            ("host-a:", "not a port"),
            ("host-a:0", "not a port"),
            ("host-a:65536", "not a port"),
            (":7473", "not a host"),
            ("https://host-a:7473", "not a host"),
            ("2001:db8::1:7473", "not a host"),
            ("[192.0.2.1]:7473", "not a host"),
            ("a/b:1", "not a host"),
        ] {
            let said = text.parse::<Remote>().unwrap_err();
            assert!(
                said.starts_with(says) && said.contains("legal is HOST:PORT"),
                "{text}: {said}"
            );
        }
    }
}
