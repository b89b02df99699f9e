//! The VXLAN header (RFC 7348 section 5).

use crate::bytes::put;
use crate::error::ParseError;

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;
/// The UDP port that IANA assigned.
pub const PORT: u16 = 4789;
/// The flag that says that the VNI counts.
pub const FLAG_VNI: u8 = 0x08;

/// A VXLAN message whose header is inside the bytes and has the VNI flag.
#[derive(Copy, Clone, Debug)]
pub struct View<'a> {
    fixed: &'a [u8; HEADER_LEN],
    payload: &'a [u8],
}

impl<'a> View<'a> {
    /// Checks the header at the start of `bytes`, the payload of a UDP datagram. Reserved bits are
    /// ignored, as RFC 7348 demands of a receiver.
    ///
    /// # Errors
    /// [`ParseError::Truncated`] or [`ParseError::BadTunnelHeader`].
    pub fn new(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let (fixed, payload) =
            bytes.split_first_chunk::<HEADER_LEN>().ok_or(ParseError::Truncated)?;
        if fixed[0] & FLAG_VNI == 0 {
            return Err(ParseError::BadTunnelHeader);
        }
        Ok(Self { fixed, payload })
    }

    /// The inner frame.
    #[must_use]
    pub const fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// The header as plain values.
    #[must_use]
    pub const fn repr(&self) -> Repr {
        let h = self.fixed;
        Repr { vni: u32::from_be_bytes([0, h[4], h[5], h[6]]) }
    }
}

/// A VXLAN header as plain values.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Repr {
    /// The 24-bit identifier as it is on the wire, zero included.
    pub vni: u32,
}

impl Repr {
    /// Reads the header at the start of `bytes`.
    ///
    /// # Errors
    /// As [`View::new`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        View::new(bytes).map(|v| v.repr())
    }

    /// Writes the header, reserved bits zero, and answers its length, [`HEADER_LEN`]; `None` if
    /// `out` is too short or the VNI above 24 bits.
    pub fn emit(&self, out: &mut [u8]) -> Option<usize> {
        let [0, a, b, c] = self.vni.to_be_bytes() else { return None };
        let out = out.get_mut(..HEADER_LEN)?;
        put(out, 0, &[FLAG_VNI, 0, 0, 0, a, b, c, 0]);
        Some(HEADER_LEN)
    }
}
