//! Why the two ends of a TLS connection do not trust each other, as far as an error of it says so.

use std::error::Error;

/// What one end has against the certificate of the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Distrust {
    /// The other end refused ours, with this alert (RFC 8446, section 6).
    Refused(String),
    /// The other's is signed by none of the authorities that we know.
    UnknownAuthority,
    /// The other's is of another name than the one that we called; what rustls says of both.
    OtherName(String),
    /// The other's is not valid for another reason, as rustls says.
    Invalid(String),
}

/// What the two ends have against each other, if that is why a connection was not made or ended.
pub fn distrust(error: &(dyn Error + 'static)) -> Option<Distrust> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        // rustls' error is wrapped by value in I/O errors of several layers, and not always to be had but in words.
        if let Some(found) = of_words(&error.to_string()) {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

fn of_words(said: &str) -> Option<Distrust> {
    if let Some((_, alert)) = said.split_once("received fatal alert: ") {
        return Some(Distrust::Refused(alert.to_owned()));
    }
    let (_, why) = said.split_once("invalid peer certificate: ")?;
    Some(if why.contains("not valid for name") {
        Distrust::OtherName(why.to_owned())
    } else if why.contains("UnknownIssuer") {
        Distrust::UnknownAuthority
    } else {
        Distrust::Invalid(why.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rustls_says_is_understood() {
        for (said, found) in [
            ("received fatal alert: UnknownCA", Distrust::Refused("UnknownCA".to_owned())),
            ("invalid peer certificate: UnknownIssuer", Distrust::UnknownAuthority),
            (
                "invalid peer certificate: certificate not valid for name \"b\"; it is for \"a\"",
                Distrust::OtherName(
                    "certificate not valid for name \"b\"; it is for \"a\"".to_owned(),
                ),
            ),
            ("invalid peer certificate: Expired", Distrust::Invalid("Expired".to_owned())),
        ] {
            let inner = std::io::Error::other(said);
            let outer = std::io::Error::other(inner);
            assert_eq!(distrust(&outer), Some(found), "{said}");
        }
        assert_eq!(distrust(&std::io::Error::other("connection refused")), None);
    }
}
