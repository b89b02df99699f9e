//! What is shipped beside the command: completions, manual pages, and the formats for programs.

use std::path::Path;
use std::process::Command;

use crate::fake::{Running, culvert};

const ROUTES: &str = "\
- port: null
  vnet: blue
  prefix: 10.0.0.0/24
  action: vnet
  to_vnet: blue
- port: a1
  vnet: null
  prefix: 10.0.0.128/25
";

const NOWHERE: &str = "/nonexistent/socket";

#[test]
fn a_run_directory_holds_the_sockets() {
    let dataplane = Running::start();
    let dir = dataplane.directory.path();
    let run = |command: &mut Command| {
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let absent = format!("culvert: no dataplane at {}", dir.join("none/dataplane.sock").display());
    let (code, err) = run(Command::new(env!("CARGO_BIN_EXE_culvert"))
        .arg("stats")
        .arg("--run-dir")
        .arg(dir.join("none")));
    assert_eq!(code, Some(3));
    assert!(err.starts_with(&absent), "{err}");
    let (code, err) = run(Command::new(env!("CARGO_BIN_EXE_culvert"))
        .arg("stats")
        .env("CULVERT_RUN_DIR", dir.join("none")));
    assert_eq!(code, Some(3));
    assert!(err.starts_with(&absent), "{err}");
    std::os::unix::fs::symlink(dir.join("socket"), dir.join("dataplane.sock")).unwrap();
    let (code, err) =
        run(Command::new(env!("CARGO_BIN_EXE_culvert")).arg("stats").env("CULVERT_RUN_DIR", dir));
    assert_eq!((code, err.as_str()), (Some(0), ""));
}

#[test]
fn yaml_says_what_json_says() {
    let dataplane = Running::start();
    let file = dataplane.write("host.toml", include_str!("../../../model/examples/host.toml"));
    assert_eq!(dataplane.culvert(&["apply", "-f", &file]).code, Some(0));
    let routes = dataplane.culvert(&["-o", "yaml", "show", "routes"]);
    assert_eq!(routes.code, Some(0), "{routes:?}");
    assert!(routes.out.starts_with(ROUTES), "{}", routes.out);
    let json = dataplane.culvert(&["-o", "json", "show", "info"]).json();
    let info = dataplane.culvert(&["-o", "yaml", "show", "info"]).out;
    for name in json.as_object().unwrap().keys() {
        assert!(info.lines().any(|line| line.starts_with(&format!("{name}:"))), "{name}: {info}");
    }
    let traps = dataplane.culvert(&["-o", "yaml", "traps", "-n", "1"]);
    assert!(traps.out.starts_with("---\n"), "{traps:?}");
}

#[test]
fn each_shell_gets_a_script_with_every_verb() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = culvert(Path::new(NOWHERE), &["completions", shell]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        for verb in ["apply", "show", "stats", "traps"] {
            assert!(ran.out.contains(verb), "{shell} lacks {verb}");
        }
    }
    let script = culvert(Path::new(NOWHERE), &["completions", "bash"]).out;
    let dataplane = Running::start();
    let file = dataplane.write("culvert.bash", &script);
    let asked = "COMP_WORDS=(culvert sh); COMP_CWORD=1; _culvert culvert sh culvert; echo \"${COMPREPLY[@]}\"";
    let script = format!("source {file}; {asked}");
    let output = Command::new("bash").arg("-c").arg(script).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "show");
}

#[test]
fn every_verb_has_a_page_that_man_can_read() {
    let dataplane = Running::start();
    let dir = dataplane.directory.path().join("man");
    let path = dir.to_str().unwrap();
    assert_eq!(culvert(Path::new(NOWHERE), &["man", path]).code, Some(0));
    let help = culvert(Path::new(NOWHERE), &["--help"]).out;
    let verbs = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let verbs: Vec<_> = verbs
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|verb| *verb != "help")
        .collect();
    assert!(verbs.len() >= 5, "{verbs:?}");
    for verb in verbs {
        let page = std::fs::read_to_string(dir.join(format!("culvert-{verb}.1"))).unwrap();
        assert!(page.contains(".TH culvert") && page.contains(".SH NAME"), "{page}");
    }
}
