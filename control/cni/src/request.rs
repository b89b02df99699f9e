//! What the runtime passes in environment variables.

use std::path::PathBuf;

use crate::error::CniError;

/// What a runtime can ask for.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Verb {
    const ALL: [(&str, Verb); 6] = [
        ("ADD", Verb::Add),
        ("DEL", Verb::Del),
        ("CHECK", Verb::Check),
        ("GC", Verb::Gc),
        ("STATUS", Verb::Status),
        ("VERSION", Verb::Version),
    ];
}

/// A container's interface in a network: what ADD makes and DEL removes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attachment {
    /// The network's name.
    pub(crate) network: String,
    /// The container's id.
    pub(crate) container: String,
    /// The interface's name inside the container.
    pub(crate) interface: String,
}

/// The variables. Each is checked when a verb wants it, since not every verb has all.
#[derive(Debug)]
pub(crate) struct Environment {
    read: fn(&str) -> Option<String>,
}

impl Environment {
    /// That of this process.
    pub(crate) fn of_process() -> Environment {
        Environment { read: |name| std::env::var(name).ok().filter(|value| !value.is_empty()) }
    }

    fn needed(&self, name: &'static str) -> Result<String, CniError> {
        (self.read)(name)
            .ok_or_else(|| CniError::Environment { name, problem: "it is missing".to_owned() })
    }

    /// `CNI_COMMAND`.
    pub(crate) fn verb(&self) -> Result<Verb, CniError> {
        let name = "CNI_COMMAND";
        let given = self.needed(name)?;
        let found = Verb::ALL.iter().find(|(word, _)| *word == given).map(|(_, verb)| *verb);
        found.ok_or_else(|| {
            let legal = Verb::ALL.map(|(word, _)| word).join(", ");
            CniError::Environment { name, problem: format!("{given:?}; legal is {legal}") }
        })
    }

    /// `CNI_CONTAINERID` and `CNI_IFNAME`, in a network.
    pub(crate) fn attachment(&self, network: &str) -> Result<Attachment, CniError> {
        let (name, container) = ("CNI_CONTAINERID", self.needed("CNI_CONTAINERID")?);
        check_container(&container).map_err(|problem| CniError::Environment { name, problem })?;
        let (name, interface) = ("CNI_IFNAME", self.needed("CNI_IFNAME")?);
        check_interface(&interface).map_err(|problem| CniError::Environment { name, problem })?;
        Ok(Attachment { network: network.to_owned(), container, interface })
    }

    /// `CNI_NETNS`, which ADD and CHECK need.
    pub(crate) fn netns(&self) -> Result<PathBuf, CniError> {
        self.needed("CNI_NETNS").map(PathBuf::from)
    }

    /// Folders of other plug-ins.
    pub(crate) fn path(&self) -> Result<Vec<PathBuf>, CniError> {
        let path = self.needed("CNI_PATH")?;
        Ok(std::env::split_paths(&path).collect())
    }
}

/// Whether it is a container's id by the specification; also used for attachments that GC names.
pub(crate) fn check_container(id: &str) -> Result<(), String> {
    let begins_well = id.starts_with(|c: char| c.is_ascii_alphanumeric());
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if begins_well && id.chars().all(legal) {
        return Ok(());
    }
    Err(format!("{id:?}; legal are letters, digits, `_`, `.` and `-`, the first a letter or digit"))
}

pub(crate) fn check_interface(name: &str) -> Result<(), String> {
    culvert_model::IfName::new(name).map(|_| ()).map_err(|fault| fault.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(read: fn(&str) -> Option<String>) -> Environment {
        Environment { read }
    }

    #[test]
    fn a_verb_that_nobody_knows_is_answered_by_those_that_there_are() {
        let error = environment(|_| Some("add".to_owned())).verb().unwrap_err();
        assert_eq!(error.code(), 4);
        assert_eq!(
            error.to_string(),
            "environment variable CNI_COMMAND: \"add\"; legal is ADD, DEL, CHECK, GC, STATUS, VERSION"
        );
    }

    #[test]
    fn each_missing_or_illegal_variable_is_named() {
        let error = environment(|_| None).attachment("n").unwrap_err();
        assert!(error.to_string().contains("CNI_CONTAINERID: it is missing"), "{error}");
        let hostile = environment(|name| {
            Some(match name {
                "CNI_CONTAINERID" => "../../etc".to_owned(),
                _ => "eth0".to_owned(),
            })
        });
        let error = hostile.attachment("n").unwrap_err();
        assert!(error.to_string().contains("CNI_CONTAINERID: \"../../etc\""), "{error}");
        let hostile = environment(|name| {
            Some(match name {
                "CNI_IFNAME" => "an/interface".to_owned(),
                _ => "c1".to_owned(),
            })
        });
        let error = hostile.attachment("n").unwrap_err();
        assert!(error.to_string().contains("CNI_IFNAME"), "{error}");
        assert!(environment(|_| None).netns().unwrap_err().to_string().contains("CNI_NETNS"));
    }
}
