//! What the rules say about a packet: pure functions of the tables and the packet's headers.
//!
//! [`egress`] decides for what a tenant sends, [`ingress`] for what arrives from the underlay,
//! [`acl`] whether a port may have such a flow, [`configure`] what it is told of its network,
//! [`anti_spoof`] whether a tenant may be who it says it is; [`observe`] is how they tell what they
//! decided, and by which rule. Nothing here sends, counts or caches.

pub mod acl;
pub mod anti_spoof;
pub mod configure;
pub mod egress;
pub mod ingress;
pub mod observe;
