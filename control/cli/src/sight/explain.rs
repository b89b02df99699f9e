//! `culvert explain`.

use std::net::IpAddr;
use std::path::Path;

use culvert_model::{Host, MacAddr, VnetId, api};

use crate::args::Args;
use crate::client::Client;
use crate::error::{CliError, hint};
use crate::sight::args::{Explain, Protocol};
use crate::sight::craft::Packet;
use crate::sight::trace::show;

pub(crate) async fn run(args: &Args, explain: &Explain) -> Result<(), CliError> {
    let mut client = Client::connect(args).await?;
    let frame = match (&explain.hex, &explain.pcap) {
        (Some(hex), _) => from_hex(hex)?,
        (None, Some(file)) => from_file(file, explain.frame)?,
        (None, None) => {
            let host = client.host().await?;
            let host = host.ok_or_else(|| {
                CliError::Other("no state was applied yet: nothing is known of any port".to_owned())
            })?;
            made(&host, explain)?
        }
    };
    let from = match (&explain.port, explain.from_underlay) {
        (Some(port), _) => api::explain_request::From::Port(port.clone()),
        (None, Some(vtep)) => {
            let (address, vni) = (vtep.to_string(), explain.vni.unwrap_or(0));
            api::explain_request::From::Vtep(api::ExplainVtep { address, vni })
        }
        (None, None) => {
            api::explain_request::From::Device(explain.device.clone().unwrap_or_default())
        }
    };
    let segment_size = explain.segment_size.unwrap_or(0).into();
    let request = api::ExplainRequest { frame, segment_size, from: Some(from) };
    let answer = client.calls.explain(request).await;
    show(args.output, client.answer(answer)?)
}

fn from_hex(text: &str) -> Result<Vec<u8>, CliError> {
    let wrong = |what: String| CliError::Usage(format!("--hex: {what}"));
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace() && *c != ':').collect();
    if !digits.len().is_multiple_of(2) {
        return Err(wrong(format!("{} digits; two make a byte", digits.len())));
    }
    let byte = |(at, pair): (usize, &[char])| {
        let value = pair.iter().try_fold(0u8, |byte, c| Some(byte << 4 | c.to_digit(16)? as u8));
        value.ok_or_else(|| {
            let pair: String = pair.iter().collect();
            wrong(format!("{pair:?} at byte {at}: not hexadecimal"))
        })
    };
    digits.chunks(2).enumerate().map(byte).collect()
}

fn from_file(path: &Path, number: u64) -> Result<Vec<u8>, CliError> {
    let wrong = |error: String| CliError::Usage(format!("--pcap {}: {error}", path.display()));
    let mut file = pcap::Capture::from_file(path).map_err(|error| wrong(error.to_string()))?;
    let ethernet = file.get_datalink();
    if ethernet != pcap::Linktype::ETHERNET {
        let name = ethernet.get_name().unwrap_or_else(|_| ethernet.0.to_string());
        return Err(wrong(format!("frames of type {name}; legal is Ethernet")));
    }
    let mut count = 0;
    loop {
        let packet = match file.next_packet() {
            Ok(packet) => packet,
            Err(pcap::Error::NoMorePackets) => {
                return Err(wrong(format!("--frame {number}: the file has {count}")));
            }
            Err(error) => return Err(wrong(error.to_string())),
        };
        count += 1;
        if count == number {
            let (kept, len) = (packet.header.caplen, packet.header.len);
            if kept < len {
                let what = format!("frame {number}: {kept} of its {len} bytes were kept");
                return Err(wrong(format!("{what}; capture with --snaplen 0")));
            }
            return Ok(packet.data.to_vec());
        }
    }
}

/// The frame that the options describe, completed from the state.
fn made(host: &Host, explain: &Explain) -> Result<Vec<u8>, CliError> {
    let wrong = |what: &str| Err(CliError::Usage(what.to_owned()));
    let Some(dst) = explain.dst else { return wrong("--dst: has to be given") };
    let (src, src_mac, dst_mac) = match &explain.port {
        Some(name) => from_port(host, explain, name, dst)?,
        None => from_vtep(host, explain, dst)?,
    };
    let packet = Packet {
        src_mac,
        dst_mac,
        src,
        dst,
        protocol: explain.proto,
        ports: (explain.sport, explain.dport),
        payload_len: explain.size as usize,
        ttl: explain.ttl,
        df: !explain.no_df,
    };
    match packet.frame() {
        Some(frame) => Ok(frame),
        None if explain.proto == Protocol::Arp => {
            wrong("--proto arp: IPv4 alone; IPv6 solicits neighbours: use --hex for that")
        }
        None => wrong("--src and --dst: one is IPv4 and the other IPv6, or --size is too large"),
    }
}

type Ends = (IpAddr, MacAddr, MacAddr);

fn from_port(host: &Host, explain: &Explain, name: &str, dst: IpAddr) -> Result<Ends, CliError> {
    let names = || host.ports().iter().map(|port| port.id.as_str());
    let port = host.port(name).ok_or_else(|| {
        CliError::Usage(format!("--port {name:?}: no such port{}", hint(name, names())))
    })?;
    let own = port.ips.iter().find(|ip| ip.is_ipv4() == dst.is_ipv4());
    let src = explain.src.or(own.copied()).ok_or_else(|| {
        let family = if dst.is_ipv4() { "IPv4" } else { "IPv6" };
        CliError::Usage(format!("--src: port {name} has no {family} address: give one"))
    })?;
    let broadcast = (explain.proto == Protocol::Arp).then_some(MacAddr([0xff; 6]));
    let dst_mac = explain.dst_mac.or(broadcast).or_else(|| mac_of(host, &port.vnet, dst));
    let dst_mac = dst_mac.or_else(|| gateway_of(host, &port.vnet, dst)).ok_or_else(|| {
        CliError::Usage(format!(
            "--dst-mac: nothing in vnet {} has {dst}, and it has no gateway: give one",
            port.vnet
        ))
    })?;
    Ok((src, explain.src_mac.unwrap_or(port.mac), dst_mac))
}

fn from_vtep(host: &Host, explain: &Explain, dst: IpAddr) -> Result<Ends, CliError> {
    let missing =
        |flag: &str, why: &str| CliError::Usage(format!("{flag}: {why}: give one by {flag}"));
    let Some(src) = explain.src else {
        return Err(missing("--src", "the sender's address is not known"));
    };
    let vni = explain.vni.unwrap_or(0);
    let vnet = host.vnets().iter().find(|vnet| vnet.vni.get() == vni).map(|vnet| &vnet.id);
    let known = |ip| vnet.and_then(|vnet| mac_of(host, vnet, ip));
    let src_mac = explain
        .src_mac
        .or_else(|| known(src))
        .ok_or_else(|| missing("--src-mac", &format!("no mapping of vni {vni} names {src}")))?;
    let dst_mac = explain
        .dst_mac
        .or_else(|| known(dst))
        .ok_or_else(|| missing("--dst-mac", &format!("nothing of vni {vni} has {dst}")))?;
    Ok((src, src_mac, dst_mac))
}

/// The MAC that an address has in a vnet.
fn mac_of(host: &Host, vnet: &VnetId, ip: IpAddr) -> Option<MacAddr> {
    let port = host.ports().iter().find(|port| port.vnet == *vnet && port.ips.contains(&ip));
    let mapping = || host.mappings().iter().find(|m| m.vnet == *vnet && m.ip == ip);
    port.map(|port| port.mac).or_else(|| mapping().map(|mapping| mapping.mac))
}

/// The MAC of the vnet's gateway that a tenant would send to.
fn gateway_of(host: &Host, vnet: &VnetId, ip: IpAddr) -> Option<MacAddr> {
    let gateways = &host.vnet(vnet.as_str())?.gateways;
    gateways.iter().find(|gateway| gateway.ip.addr().is_ipv4() == ip.is_ipv4()).map(|g| g.mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_may_be_written_as_tools_write_it() {
        assert_eq!(from_hex("02:00 0A\nfe").unwrap(), [2, 0, 10, 0xfe]);
        assert!(from_hex("020").unwrap_err().to_string().contains("3 digits"));
        let error = from_hex("02zz").unwrap_err().to_string();
        assert!(error.contains("\"zz\" at byte 1"), "{error}");
    }
}
