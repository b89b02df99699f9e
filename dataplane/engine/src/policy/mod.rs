//! What the rules say about a packet: pure functions of the tables and the packet's headers.
//!
//! [`egress`] decides for what a tenant sends, [`ingress`] for what arrives from the underlay,
//! [`anti_spoof`] whether a tenant may be who it says it is; [`observe`] is how they tell what they
//! decided, and by which rule. Nothing here sends, counts or caches.

pub mod acl;
pub mod anti_spoof;
pub mod egress;
pub mod ingress;
pub mod observe;
