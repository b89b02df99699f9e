//! Packet filters: classic BPF, the machine of 1993 that tcpdump's filters are
//! compiled for.
//!
//! A program comes from a client and is hostile until [`Program::new`] has checked it. What passes
//! has typed operations, forward jumps alone and a return at its end: it runs in at most as many
//! steps as it has instructions, and reads nothing but the packet.

use thiserror::Error;

/// Instructions of a program at most, the kernel's `BPF_MAXINSNS`.
pub const INSTRUCTIONS_MAX: usize = 4096;

/// Scratch words, the kernel's `BPF_MEMWORDS`.
const MEMORY_WORDS: usize = 16;

/// An instruction as libpcap and the kernel write it.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub code: u16,
    /// Instructions to skip where a test holds.
    pub jt: u8,
    /// Instructions to skip where it does not.
    pub jf: u8,
    /// Its operand.
    pub k: u32,
}

/// Why a program is refused. `at` is the position of the instruction, from 0.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Error)]
pub enum BpfError {
    /// A filter has at least a return.
    #[error("the filter is empty")]
    Empty,
    /// Write a shorter filter.
    #[error("the filter has {0} instructions; legal is 1 to {INSTRUCTIONS_MAX}")]
    TooLong(usize),
    /// Compile it for classic BPF.
    #[error("instruction {at}: code {code:#06x} is not one of classic BPF")]
    Code {
        /// Where.
        at: usize,
        /// What.
        code: u16,
    },
    /// A jump leads behind the end, or back: `protochain` of tcpdump's language does, for one.
    #[error("instruction {at}: a jump that leads out of the filter, or back")]
    Jump {
        /// Where.
        at: usize,
    },
    /// A division by the constant zero.
    #[error("instruction {at}: a division by zero")]
    Division {
        /// Where.
        at: usize,
    },
    /// A shift by a constant of more than 31 bits.
    #[error("instruction {at}: a shift by {by} bits; legal is 0 to 31")]
    Shift {
        /// Where.
        at: usize,
        /// By how much.
        by: u32,
    },
    /// A scratch word that there is not.
    #[error("instruction {at}: scratch word {word}; legal is 0 to 15")]
    Memory {
        /// Where.
        at: usize,
        /// Which.
        word: u32,
    },
    /// The last instruction has to return.
    #[error("the filter does not end with a return")]
    NoReturn,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Alu {
    Add,
    Sub,
    Mul,
    Div,
    Mod,
    And,
    Or,
    Xor,
    Lsh,
    Rsh,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Test {
    Equal,
    Greater,
    GreaterEqual,
    AnySet,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Width {
    Byte,
    Half,
    Word,
}

/// The second operand.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Source {
    K(u32),
    X,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Op {
    /// A from the packet, at `k`, or at `x + k`.
    Load {
        width: Width,
        k: u32,
        indexed: bool,
    },
    Immediate(u32),
    Length,
    Memory(usize),
    LoadX(u32),
    LengthX,
    MemoryX(usize),
    /// Four times the low half of a byte: the length of an IPv4 header.
    HeaderX(u32),
    Store(usize),
    StoreX(usize),
    Alu(Alu, Source),
    Negate,
    Jump(usize),
    /// Where to go on: if the test holds, and if it does not.
    If(Test, Source, usize, usize),
    Return(u32),
    ReturnA,
    AToX,
    XToA,
}

/// What a filter reads: a packet that may lie in pieces.
pub trait Bytes {
    /// Bytes of the packet.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes from `at`; none where the packet ends before.
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]>;
}

impl Bytes for [u8] {
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }

    #[inline]
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.get(at..)?.first_chunk().copied()
    }
}

/// A filter that has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program(Box<[Op]>);

impl Program {
    /// Checks a program.
    ///
    /// # Errors
    /// [`BpfError`]: it could read or run where it must not.
    pub fn new(instructions: &[Instruction]) -> Result<Program, BpfError> {
        let count = instructions.len();
        match count {
            0 => return Err(BpfError::Empty),
            1..=INSTRUCTIONS_MAX => {}
            _ => return Err(BpfError::TooLong(count)),
        }
        let each = instructions.iter().enumerate();
        let ops =
            each.map(|(at, ins)| decode(at, *ins, count)).collect::<Result<Box<[Op]>, _>>()?;
        match ops.last() {
            Some(Op::Return(_) | Op::ReturnA) => Ok(Program(ops)),
            _ => Err(BpfError::NoReturn),
        }
    }

    /// Whether the packet passes.
    pub fn matches<B: Bytes + ?Sized>(&self, packet: &B) -> bool {
        self.run(packet).unwrap_or(0) != 0
    }

    /// What the program returns; none where it reads behind the packet's end or divides by zero,
    /// which counts as zero.
    fn run<B: Bytes + ?Sized>(&self, packet: &B) -> Option<u32> {
        let (mut a, mut x) = (0u32, 0u32);
        let mut memory = [0u32; MEMORY_WORDS];
        let length = u32::try_from(packet.len()).unwrap_or(u32::MAX);
        let mut at = 0;
        loop {
            let op = *self.0.get(at)?;
            at += 1;
            match op {
                Op::Load { width, k, indexed } => {
                    let from = if indexed { x.checked_add(k)? } else { k } as usize;
                    a = match width {
                        Width::Byte => u8::from_be_bytes(packet.load(from)?).into(),
                        Width::Half => u16::from_be_bytes(packet.load(from)?).into(),
                        Width::Word => u32::from_be_bytes(packet.load(from)?),
                    };
                }
                Op::Immediate(k) => a = k,
                Op::Length => a = length,
                Op::Memory(word) => a = *memory.get(word)?,
                Op::LoadX(k) => x = k,
                Op::LengthX => x = length,
                Op::MemoryX(word) => x = *memory.get(word)?,
                Op::HeaderX(k) => {
                    let [byte] = packet.load(k as usize)?;
                    x = u32::from(byte & 0x0f) << 2;
                }
                Op::Store(word) => *memory.get_mut(word)? = a,
                Op::StoreX(word) => *memory.get_mut(word)? = x,
                Op::Alu(alu, source) => a = alu.of(a, source.value(x))?,
                Op::Negate => a = a.wrapping_neg(),
                Op::Jump(to) => at = to,
                Op::If(test, source, yes, no) => {
                    at = if test.holds(a, source.value(x)) { yes } else { no };
                }
                Op::Return(k) => return Some(k),
                Op::ReturnA => return Some(a),
                Op::AToX => x = a,
                Op::XToA => a = x,
            }
        }
    }
}

impl Source {
    fn value(self, x: u32) -> u32 {
        match self {
            Source::K(k) => k,
            Source::X => x,
        }
    }
}

impl Alu {
    fn of(self, a: u32, b: u32) -> Option<u32> {
        Some(match self {
            Alu::Add => a.wrapping_add(b),
            Alu::Sub => a.wrapping_sub(b),
            Alu::Mul => a.wrapping_mul(b),
            Alu::Div => a.checked_div(b)?,
            Alu::Mod => a.checked_rem(b)?,
            Alu::And => a & b,
            Alu::Or => a | b,
            Alu::Xor => a ^ b,
            Alu::Lsh => a.checked_shl(b).unwrap_or(0),
            Alu::Rsh => a.checked_shr(b).unwrap_or(0),
        })
    }
}

impl Test {
    fn holds(self, a: u32, b: u32) -> bool {
        match self {
            Test::Equal => a == b,
            Test::Greater => a > b,
            Test::GreaterEqual => a >= b,
            Test::AnySet => a & b != 0,
        }
    }
}

fn decode(at: usize, ins: Instruction, count: usize) -> Result<Op, BpfError> {
    let Instruction { code, jt, jf, k } = ins;
    let unknown = BpfError::Code { at, code };
    let word = || match k {
        0..16 => Ok(k as usize),
        _ => Err(BpfError::Memory { at, word: k }),
    };
    let target = |skip: u32| {
        let to = (at + 1).saturating_add(skip as usize);
        if to < count { Ok(to) } else { Err(BpfError::Jump { at }) }
    };
    let width = match code & 0x18 {
        0x00 => Some(Width::Word),
        0x08 => Some(Width::Half),
        0x10 => Some(Width::Byte),
        _ => None,
    };
    let source = if code & 0x08 == 0 { Source::K(k) } else { Source::X };
    // The bits beyond a class's own have to be clear.
    let op = match (code & 0x07, code & !0x07) {
        (0x00, 0x00) => Op::Immediate(k),
        (0x00, 0x60) => Op::Memory(word()?),
        (0x00, 0x80) => Op::Length,
        (0x00, 0x20 | 0x28 | 0x30) => Op::Load { width: width.ok_or(unknown)?, k, indexed: false },
        (0x00, 0x40 | 0x48 | 0x50) => Op::Load { width: width.ok_or(unknown)?, k, indexed: true },
        (0x01, 0x00) => Op::LoadX(k),
        (0x01, 0x60) => Op::MemoryX(word()?),
        (0x01, 0x80) => Op::LengthX,
        (0x01, 0xb0) => Op::HeaderX(k),
        (0x02, 0x00) => Op::Store(word()?),
        (0x03, 0x00) => Op::StoreX(word()?),
        (0x04, 0x80) => Op::Negate,
        (0x04, op) => {
            let alu = match op & !0x08 {
                0x00 => Alu::Add,
                0x10 => Alu::Sub,
                0x20 => Alu::Mul,
                0x30 => Alu::Div,
                0x40 => Alu::Or,
                0x50 => Alu::And,
                0x60 => Alu::Lsh,
                0x70 => Alu::Rsh,
                0x90 => Alu::Mod,
                0xa0 => Alu::Xor,
                _ => return Err(unknown),
            };
            match (alu, source) {
                (Alu::Div | Alu::Mod, Source::K(0)) => return Err(BpfError::Division { at }),
                (Alu::Lsh | Alu::Rsh, Source::K(by @ 32..)) => {
                    return Err(BpfError::Shift { at, by });
                }
                _ => Op::Alu(alu, source),
            }
        }
        (0x05, 0x00) => Op::Jump(target(k)?),
        (0x05, op) => {
            let test = match op & !0x08 {
                0x10 => Test::Equal,
                0x20 => Test::Greater,
                0x30 => Test::GreaterEqual,
                0x40 => Test::AnySet,
                _ => return Err(unknown),
            };
            Op::If(test, source, target(jt.into())?, target(jf.into())?)
        }
        (0x06, 0x00) => Op::Return(k),
        (0x06, 0x10) => Op::ReturnA,
        (0x07, 0x00) => Op::AToX,
        (0x07, 0x80) => Op::XToA,
        _ => return Err(unknown),
    };
    Ok(op)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETURN: Instruction = ins(0x06, 1);

    const fn ins(code: u16, k: u32) -> Instruction {
        Instruction { code, jt: 0, jf: 0, k }
    }

    fn refusal(instructions: &[Instruction]) -> BpfError {
        Program::new(instructions).unwrap_err()
    }

    #[test]
    fn what_could_run_astray_is_refused() {
        let zeroes = vec![ins(0x00, 0); INSTRUCTIONS_MAX + 1];
        assert_eq!(refusal(&[]), BpfError::Empty);
        assert_eq!(refusal(&zeroes), BpfError::TooLong(INSTRUCTIONS_MAX + 1));
        assert_eq!(refusal(&zeroes[..3]), BpfError::NoReturn);
        assert_eq!(refusal(&[ins(0x05, 1), RETURN]), BpfError::Jump { at: 0 });
        assert_eq!(refusal(&[ins(0x05, u32::MAX), RETURN]), BpfError::Jump { at: 0 });
        let branch = Instruction { code: 0x15, jt: 0, jf: 1, k: 0 };
        assert_eq!(refusal(&[branch, RETURN]), BpfError::Jump { at: 0 });
        assert_eq!(refusal(&[ins(0x34, 0), RETURN]), BpfError::Division { at: 0 });
        assert_eq!(refusal(&[ins(0x94, 0), RETURN]), BpfError::Division { at: 0 });
        assert_eq!(refusal(&[ins(0x64, 32), RETURN]), BpfError::Shift { at: 0, by: 32 });
        assert_eq!(refusal(&[ins(0x02, 16), RETURN]), BpfError::Memory { at: 0, word: 16 });
        assert_eq!(refusal(&[ins(0x61, 99), RETURN]), BpfError::Memory { at: 0, word: 99 });
        for code in [0x38, 0x58, 0xb0, 0xb4, 0x55, 0x1e, 0x0f, 0x0100] {
            assert_eq!(refusal(&[ins(code, 0), RETURN]), BpfError::Code { at: 0, code });
        }
    }

    #[test]
    fn a_division_by_what_turns_out_to_be_zero_does_not_match() {
        let program = Program::new(&[ins(0x01, 0), ins(0x3c, 0), RETURN]).unwrap();
        assert!(!program.matches(&[1u8, 2][..]));
    }

    #[test]
    fn what_is_behind_the_end_does_not_match() {
        for (load, len) in [(0x30, 1), (0x28, 2), (0x20, 4)] {
            let program = Program::new(&[ins(load, 8), RETURN]).unwrap();
            assert!(!program.matches(&vec![0u8; 8 + len - 1][..]));
            assert!(program.matches(&vec![0u8; 8 + len][..]));
        }
        let indexed = [ins(0x01, u32::MAX), ins(0x50, 1), RETURN];
        assert!(!Program::new(&indexed).unwrap().matches(&[0u8; 64][..]));
    }

    #[test]
    fn a_shift_by_more_than_there_is_leaves_nothing() {
        for code in [0x6c, 0x7c] {
            let shifted = [ins(0x00, 1), ins(0x01, 32), ins(code, 0), ins(0x16, 0)];
            assert!(!Program::new(&shifted).unwrap().matches(&[0u8][..]));
        }
    }
}
