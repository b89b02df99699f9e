//! ICMP echo by the system's `ping`.

use std::net::IpAddr;

use crate::netns::Netns;
use crate::process::CommandError;

/// What a ping run saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PingReport {
    /// Requests sent.
    pub sent: u32,
    /// Replies received.
    pub received: u32,
    /// All output, for messages.
    pub output: String,
}

impl PingReport {
    /// Whether every request was sent and answered.
    pub fn all_answered(&self) -> bool {
        self.sent > 0 && self.sent == self.received
    }
}

/// Sends `count` echo requests with `size` bytes of payload, ten a second, and waits at most a second for replies.
pub fn ping(ns: &Netns, dst: IpAddr, count: u32, size: u32) -> PingReport {
    run(ns, dst, count, size, "")
}

/// As [`ping`] with Don't Fragment, obeying the path MTU that the kernel knows.
pub fn ping_df(ns: &Netns, dst: IpAddr, count: u32, size: u32) -> PingReport {
    run(ns, dst, count, size, "-M do")
}

fn run(ns: &Netns, dst: IpAddr, count: u32, size: u32, more: &str) -> PingReport {
    let line = format!("ping -n -c {count} -i 0.1 -W 1 -s {size} {more} {dst}");
    let output = match ns.try_run(&line) {
        Ok(output) => output,
        Err(CommandError::Exit { stdout, stderr, .. }) => stdout + &stderr,
        Err(e @ CommandError::Start { .. }) => panic!("{e}"),
    };
    let (sent, received) = parse(&output);
    PingReport { sent, received, output }
}

/// Reads "3 packets transmitted, 2 received".
fn parse(output: &str) -> (u32, u32) {
    let number_before = |word: &str| {
        let line = output.lines().find(|l| l.contains("packets transmitted"))?;
        let part = line.split(',').find(|part| part.contains(word))?;
        part.split_whitespace().next()?.parse().ok()
    };
    (number_before("packets transmitted").unwrap_or(0), number_before("received").unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_is_read_also_with_errors_in_it() {
        let summary = "--- 10.0.0.1 ping statistics ---\n3 packets transmitted, 2 received, +1 errors, 33% packet loss\n";
        assert_eq!(parse(summary), (3, 2));
        assert_eq!(parse("ping: connect: Network is unreachable\n"), (0, 0));
    }
}
