//! Export names with parameters.
//!
//! Behind the name of an export, which may be empty, parameters may follow, each behind a semicolon:
//!
//! | parameter | what |
//! |---|---|
//! | `ro` | read-only |
//! | `session=KEY` | the connection belongs to a session; older generations of it are dropped first |
//! | `generation=N` | how often the session was continued; 0 if not given |
//!
//! A server whose names are to have them parses what a client gave in [`Exports::open`](crate::Exports::open).

/// An export name, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportName<'a> {
    /// The export's own name; empty for the default one.
    pub export: &'a str,
    /// The client wants to read only.
    pub read_only: bool,
    /// The session that the connection belongs to, by its key, and its generation of it. Sessions of different exports
    /// have nothing to do with each other, whatever their keys.
    pub session: Option<(&'a str, u64)>,
}

/// Why an export name is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportNameError {
    /// A parameter is unknown, given twice, or has a value that is not legal.
    #[error(
        "export name {name:?}: wrong parameter {part:?}; legal are ro, session=KEY and generation=NUMBER, each once"
    )]
    Parameter {
        /// The whole name.
        name: String,
        /// The parameter.
        part: String,
    },
    /// A generation belongs to a session, and none is named.
    #[error("export name {name:?}: generation without session")]
    NoSession {
        /// The whole name.
        name: String,
    },
}

impl<'a> ExportName<'a> {
    /// Takes a name apart.
    ///
    /// # Errors
    /// When what is behind the first semicolon is no list of parameters: see [`ExportNameError`].
    pub fn parse(name: &'a str) -> Result<Self, ExportNameError> {
        let mut parts = name.split(';');
        let export = parts.next().unwrap_or_default();
        let (mut read_only, mut key, mut generation) = (false, None, None);
        for part in parts {
            let wrong =
                || ExportNameError::Parameter { name: name.to_owned(), part: part.to_owned() };
            match part.split_once('=') {
                None if part == "ro" && !read_only => read_only = true,
                Some(("session", value)) if !value.is_empty() && key.is_none() => key = Some(value),
                Some(("generation", value)) if generation.is_none() => {
                    generation = Some(value.parse().map_err(|_| wrong())?);
                }
                _ => return Err(wrong()),
            }
        }
        let session = match (key, generation) {
            (Some(key), generation) => Some((key, generation.unwrap_or(0))),
            (None, None) => None,
            (None, Some(_)) => return Err(ExportNameError::NoSession { name: name.to_owned() }),
        };
        Ok(Self { export, read_only, session })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_parameters() {
        for name in ["vol", ""] {
            let plain = ExportName { export: name, read_only: false, session: None };
            assert_eq!(ExportName::parse(name), Ok(plain));
        }
        let name = ExportName::parse("vol;ro;session=a;generation=7").unwrap();
        assert!(name.export == "vol" && name.read_only);
        assert_eq!(name.session, Some(("a", 7)));
        let name = ExportName::parse("vol;session=a=b").unwrap();
        assert_eq!(name.session, Some(("a=b", 0)));
    }

    #[test]
    fn what_is_wrong_is_named_with_what_is_legal() {
        for (wrong, part) in [
            ("vol;", ""),
            ("vol;rw", "rw"),
            ("vol;ro;ro", "ro"),
            ("vol;RO", "RO"),
            ("vol;session=", "session="),
            ("vol;session", "session"),
            ("vol;session=a;session=b", "session=b"),
            ("vol;session=a;generation=x", "generation=x"),
            ("vol;session=a;generation=-1", "generation=-1"),
            ("vol;session=a;generation=18446744073709551616", "generation=18446744073709551616"),
            ("vol;session=a;generation=1;generation=1", "generation=1"),
        ] {
            let expected =
                ExportNameError::Parameter { name: wrong.to_owned(), part: part.to_owned() };
            assert_eq!(ExportName::parse(wrong), Err(expected.clone()));
            let said = expected.to_string();
            assert!(said.contains(&format!("{part:?}")) && said.contains("session=KEY"), "{said}");
        }
        let alone = ExportName::parse("vol;generation=1").unwrap_err();
        assert_eq!(alone, ExportNameError::NoSession { name: "vol;generation=1".to_owned() });
    }
}
