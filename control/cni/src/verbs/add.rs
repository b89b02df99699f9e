//! ADD: a device in the container, its other end a port of a vnet.
//!
//! The container's end stays down until the dataplane has the other one, so that nothing of the container reaches the
//! host's own stack. What was made is removed again if any step fails.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use culvert_model::api::{self, port};
use culvert_model::{MacAddr, Mtu, Underlay, Vnet};

use super::{Names, ipam, plan};
use crate::config::{Addressing, NetConf};
use crate::control::Culvertd;
use crate::error::CniError;
use crate::ipam::Ipam;
use crate::link::{Netlink, Pair};
use crate::names;
use crate::netns;
use crate::request::Environment;
use crate::result::{AddResult, Interface};

/// The namespace of this process.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// What must go again if a later step fails.
#[derive(Default)]
struct Made {
    leases: bool,
    device: bool,
    port: bool,
}

/// Carries the verb out.
pub(crate) async fn add(conf: &NetConf, environment: &Environment) -> Result<AddResult, CniError> {
    let names = Names::of(environment.attachment(&conf.name)?)?;
    let sandbox = environment.netns()?;
    let namespace = open_sandbox(&sandbox)?;
    let host = Netlink::connect()?;
    refuse_what_is_there(&host, &namespace, &names).await?;
    let mut culvertd = Culvertd::connect(&conf.run_dir).await?;
    let vnet = culvertd.vnet(&conf.vnet).await?;
    let underlay = culvertd.underlay().await?;
    let ipam = ipam(conf, environment)?;

    let attempt = Attempt { conf, names: &names, sandbox: &sandbox, namespace: &namespace };
    let mut made = Made::default();
    let ways = Ways { host: &host, culvertd: &mut culvertd, ipam: ipam.as_ref() };
    match attempt.make(ways, &vnet, &underlay, &mut made).await {
        Ok(result) => Ok(result),
        Err(error) => {
            undo(&made, &names, &host, &mut culvertd, ipam.as_ref()).await;
            Err(error)
        }
    }
}

fn open_sandbox(path: &Path) -> Result<File, CniError> {
    let wrong = |problem: String| CniError::Environment { name: "CNI_NETNS", problem };
    let namespace = netns::open(path)?
        .ok_or_else(|| wrong(format!("{}: no such namespace", path.display())))?;
    let failed = |source: io::Error| CniError::File { path: path.to_owned(), source };
    let (theirs, ours) =
        (namespace.metadata().map_err(failed)?, fs::metadata(OWN_NAMESPACE).map_err(failed)?);
    if (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()) {
        return Err(wrong(format!("{}: that is the host's own", path.display())));
    }
    Ok(namespace)
}

/// What exists is left as it is: it may be a container's that works.
async fn refuse_what_is_there(
    host: &Netlink,
    namespace: &File,
    names: &Names,
) -> Result<(), CniError> {
    let interface = &names.attachment.interface;
    if netns::enter(namespace, async |netlink| netlink.link(interface).await)?.is_some() {
        return Err(CniError::Exists(format!(
            "the container has an interface {interface} already"
        )));
    }
    if host.link(&names.device).await?.is_some() {
        return Err(CniError::Exists(format!(
            "device {} of this attachment is there already; DEL removes it",
            names.device
        )));
    }
    Ok(())
}

struct Attempt<'a> {
    conf: &'a NetConf,
    names: &'a Names,
    sandbox: &'a Path,
    namespace: &'a File,
}

struct Ways<'a> {
    host: &'a Netlink,
    culvertd: &'a mut Culvertd,
    ipam: Option<&'a Ipam>,
}

impl Attempt<'_> {
    async fn make(
        &self,
        ways: Ways<'_>,
        vnet: &Vnet,
        underlay: &Underlay,
        made: &mut Made,
    ) -> Result<AddResult, CniError> {
        let Attempt { conf, names, .. } = self;
        let mut own = self.addresses(ways.ipam, vnet, made)?;
        let least = underlay_mtu(ways.host, underlay).await?;
        let formats = ways.culvertd.formats().await?;
        let overhead = plan::overhead(underlay, vnet, &formats)?;
        let mtu = plan::mtu(conf.mtu, underlay, (least, overhead), &own.ips)?;
        let mac = conf.mac.unwrap_or_else(|| names::mac(&names.attachment));

        let interface = names.attachment.interface.as_str();
        let pair = Pair {
            here: &names.device,
            alias: &names::alias(&names.port),
            there: interface,
            namespace: self.namespace,
            mac,
            mtu: mtu.get().into(),
        };
        ways.host.add_pair(&pair).await?;
        made.device = true;
        // The host has no business on this device, not even to ask for routers.
        set_ipv6(&names.device, false)?;
        ways.host.set_up(&names.device).await?;
        made.port = true;
        ways.culvertd.put(&self.port(mac, mtu, &own)).await?;

        let with_ipv6 = own.ips.iter().any(|address| address.address.addr().is_ipv6());
        netns::enter(self.namespace, async |netlink| {
            if with_ipv6 {
                set_ipv6(interface, true)?;
            }
            netlink.set_up(interface).await?;
            let Some(link) = netlink.link(interface).await? else {
                return Err(CniError::Damaged(format!("somebody removed {interface}")));
            };
            for address in &own.ips {
                netlink.add_address(link.index, address.address).await?;
            }
            for route in &own.routes {
                netlink.add_route(link.index, route).await?;
            }
            Ok(())
        })?;

        own.interfaces = self.interfaces(ways.host, mac, mtu).await?;
        own.ips.iter_mut().for_each(|address| address.interface = Some(1));
        let mut result = conf.previous.clone().unwrap_or_default();
        result.extend(own);
        Ok(result)
    }

    /// Addresses, routes and name servers, from whoever says them.
    fn addresses(
        &self,
        ipam: Option<&Ipam>,
        vnet: &Vnet,
        made: &mut Made,
    ) -> Result<AddResult, CniError> {
        let conf = self.conf;
        let mut own = match (&conf.addressing, ipam) {
            (Addressing::Given(wishes), _) => {
                let ips = plan::addresses(wishes, vnet)?;
                let routes = conf.routes.clone().unwrap_or_else(|| plan::default_routes(&ips));
                AddResult { ips, routes, ..AddResult::default() }
            }
            (Addressing::Delegated { .. }, Some(ipam)) => {
                let given = ipam.add()?;
                made.leases = true;
                given
            }
            (Addressing::Delegated { plugin }, None) => {
                let problem = "not looked for".to_owned();
                return Err(CniError::Ipam { plugin: plugin.clone(), problem });
            }
        };
        own.interfaces.clear();
        own.routes = plan::complete(own.routes, &own.ips, vnet)?;
        if let Some(dns) = &conf.dns
            && own.dns == Default::default()
        {
            own.dns.clone_from(dns);
        }
        Ok(own)
    }

    fn port(&self, mac: MacAddr, mtu: Mtu, own: &AddResult) -> api::Port {
        api::Port {
            id: self.names.port.to_string(),
            vnet: self.conf.vnet.to_string(),
            attach: Some(port::Attach::Xdp(self.names.device.clone())),
            mac: mac.to_string(),
            ips: own.ips.iter().map(|address| address.address.addr().to_string()).collect(),
            mtu: Some(mtu.get().into()),
            acl: self.conf.acl.iter().map(ToString::to_string).collect(),
            ..Default::default()
        }
    }

    async fn interfaces(
        &self,
        host: &Netlink,
        mac: MacAddr,
        mtu: Mtu,
    ) -> Result<Vec<Interface>, CniError> {
        let device = host.link(&self.names.device).await?;
        let mtu = Some(u32::from(mtu.get()));
        Ok(vec![
            Interface {
                name: self.names.device.clone(),
                mac: device.and_then(|link| link.mac).map_or(String::new(), |mac| mac.to_string()),
                mtu,
                ..Interface::default()
            },
            Interface {
                name: self.names.attachment.interface.clone(),
                mac: mac.to_string(),
                mtu,
                sandbox: self.sandbox.display().to_string(),
                ..Interface::default()
            },
        ])
    }
}

/// The least MTU of the underlay's devices.
async fn underlay_mtu(host: &Netlink, underlay: &Underlay) -> Result<u32, CniError> {
    let mut least = u32::MAX;
    for interface in &underlay.interfaces {
        let Some(link) = host.link(interface.as_str()).await? else {
            let problem = format!("the underlay's device {interface} is not there");
            return Err(CniError::TryAgain { problem });
        };
        least = least.min(link.mtu);
    }
    Ok(least)
}

/// Switches IPv6 of a device on or off, in the namespace of this thread.
fn set_ipv6(device: &str, on: bool) -> Result<(), CniError> {
    let path = PathBuf::from(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"));
    match fs::write(&path, if on { "0" } else { "1" }) {
        // A kernel without IPv6 has nothing to switch off.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !on => Ok(()),
        written => written.map_err(|source| CniError::File { path, source }),
    }
}

/// Removes what was made, in the order of DEL. The error that led here is what the runtime hears of; it calls DEL later,
/// which repeats what does not work now.
async fn undo(
    made: &Made,
    names: &Names,
    host: &Netlink,
    culvertd: &mut Culvertd,
    ipam: Option<&Ipam>,
) {
    if made.device
        && let Err(error) = host.remove(&names.device).await
    {
        eprintln!("culvert-cni: {error}");
    }
    if made.port
        && let Err(error) = culvertd.delete(&names.port).await
    {
        // The addresses stay the port's, and so must not be given to another.
        eprintln!("culvert-cni: {error}");
        return;
    }
    if made.leases
        && let Some(Err(error)) = ipam.map(Ipam::del)
    {
        eprintln!("culvert-cni: {error}");
    }
}
