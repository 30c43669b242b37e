//! [`Pickle`]: a pickle as data.
//!
//! Values live in one table and refer to each other by index. So a value that the memo shares a million times is one
//! value, a cycle is no trap, and nothing here recurses: a hostile file costs at most memory in proportion to its
//! length.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};

use super::View;

pub(super) type Id = u32;

/// One value.
#[derive(Debug)]
pub(super) enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// An integer beyond 64 bits; its digits do not matter to anyone here.
    Huge,
    Float(f64),
    Str(Box<str>),
    Bytes(Box<[u8]>),
    List(Vec<Id>),
    Tuple(Box<[Id]>),
    Dict(Vec<(Id, Id)>),
    Set(Vec<Id>),
    Global(Box<(String, String)>),
    Persistent(Id),
    Object(Box<Object>),
}

/// What a class or function would have been called with, and what would then have been put into the result.
#[derive(Debug)]
pub(super) struct Object {
    pub class: Id,
    pub args: Id,
    pub state: Option<Id>,
    pub items: Vec<Id>,
    pub pairs: Vec<(Id, Id)>,
}

/// A pickle that was read.
#[derive(Debug)]
pub struct Pickle {
    nodes: Vec<Node>,
    root: Id,
}

impl Pickle {
    /// Reads a pickle of protocol 0 to 5. Bytes after its end are ignored, as Python does.
    ///
    /// # Errors
    /// Not a pickle, cut off, or with an opcode that means something outside of the file (extension registry,
    /// out-of-band buffers): with the place of the opcode.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut machine =
            Machine { bytes, at: 0, nodes: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
        loop {
            let place = machine.at;
            match machine.step() {
                Ok(None) => {}
                Ok(Some(root)) => return Ok(Self { nodes: machine.nodes, root }),
                Err(error) => return Err(error.context(format!("the pickle is damaged at byte {place}"))),
            }
        }
    }

    /// The value that the pickle stands for.
    #[must_use]
    pub fn root(&self) -> View<'_> {
        View::new(self, self.root)
    }

    pub(super) fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.bytes.len()).context("it ends in the middle")?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into()?)
    }
    fn u8(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }
    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    fn length8(&mut self) -> Result<usize> {
        Ok(usize::try_from(u64::from_le_bytes(self.array()?))?)
    }
    fn line(&mut self) -> Result<&'a str> {
        let rest = &self.bytes[self.at..];
        let n = rest.iter().position(|&b| b == b'\n').context("a line without an end")?;
        self.at += n + 1;
        Ok(std::str::from_utf8(&rest[..n])?)
    }

    fn push(&mut self, node: Node) -> Result<()> {
        let id = Id::try_from(self.nodes.len()).context("more than 2³² values")?;
        self.nodes.push(node);
        self.stack.push(id);
        Ok(())
    }
    /// Values below the last mark belong to the one who set it: taking them is an error in the pickle.
    fn pop(&mut self) -> Result<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        ensure!(self.stack.len() > floor, "a value is taken from an empty stack");
        Ok(self.stack.pop().expect("it is longer than its floor"))
    }
    fn top(&self) -> Result<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        ensure!(self.stack.len() > floor, "a value is taken from an empty stack");
        Ok(self.stack[self.stack.len() - 1])
    }
    fn pop_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().context("no mark was set")?;
        Ok(self.stack.split_off(mark))
    }
    fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>> {
        ensure!(items.len().is_multiple_of(2), "a key has no value");
        Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }
    fn text(&self, id: Id) -> Result<&str> {
        match &self.nodes[id as usize] {
            Node::Str(text) => Ok(text),
            _ => bail!("a name is not a string"),
        }
    }

    fn append(&mut self, items: &[Id]) -> Result<()> {
        let list = self.top()?;
        match &mut self.nodes[list as usize] {
            Node::List(all) | Node::Set(all) => all.extend_from_slice(items),
            Node::Object(object) => object.items.extend_from_slice(items),
            _ => bail!("something is appended to what is no list"),
        }
        Ok(())
    }
    fn set_items(&mut self, items: &[Id]) -> Result<()> {
        let mut pairs = Self::pairs(items)?;
        let dict = self.top()?;
        match &mut self.nodes[dict as usize] {
            Node::Dict(all) => all.append(&mut pairs),
            Node::Object(object) => object.pairs.append(&mut pairs),
            _ => bail!("a key is set in what is no dictionary"),
        }
        Ok(())
    }
    fn call(&mut self, class: Id, args: Id) -> Result<()> {
        self.push(Node::Object(Box::new(Object { class, args, state: None, items: Vec::new(), pairs: Vec::new() })))
    }
    fn global(&mut self, module: &str, name: &str) -> Result<()> {
        self.push(Node::Global(Box::new((module.to_owned(), name.to_owned()))))
    }
    fn put(&mut self, index: u32) -> Result<()> {
        let top = self.top()?;
        self.memo.insert(index, top);
        Ok(())
    }
    fn get(&mut self, index: u32) -> Result<()> {
        let id = *self.memo.get(&index).with_context(|| format!("the memo has no {index}"))?;
        self.stack.push(id);
        Ok(())
    }
    fn string(&mut self, n: usize) -> Result<()> {
        let text = std::str::from_utf8(self.take(n)?)?.into();
        self.push(Node::Str(text))
    }
    fn bytes(&mut self, n: usize) -> Result<()> {
        let bytes = self.take(n)?.into();
        self.push(Node::Bytes(bytes))
    }
    /// A two's-complement little-endian integer of any length.
    fn long(&mut self, n: usize) -> Result<()> {
        let bytes = self.take(n)?;
        let fill = if bytes.last().is_some_and(|&b| b >= 0x80) { 0xff } else { 0 };
        let (low, high) = bytes.split_at(n.min(8));
        let mut word = [fill; 8];
        word[..low.len()].copy_from_slice(low);
        let value = i64::from_le_bytes(word);
        let fits = high.iter().all(|&b| b == fill) && (high.is_empty() || (value < 0) == (fill == 0xff));
        self.push(if fits { Node::Int(value) } else { Node::Huge })
    }

    /// One opcode. `Some` at the end.
    fn step(&mut self) -> Result<Option<Id>> {
        // Opcodes in the order of Python's `pickletools`.
        match self.u8()? {
            b'I' => match self.line()? {
                "00" => self.push(Node::Bool(false))?,
                "01" => self.push(Node::Bool(true))?,
                digits => {
                    let value = digits.parse()?;
                    self.push(Node::Int(value))?;
                }
            },
            b'J' => {
                let value = i32::from_le_bytes(self.array()?).into();
                self.push(Node::Int(value))?;
            }
            b'K' => {
                let value = self.u8()?.into();
                self.push(Node::Int(value))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?).into();
                self.push(Node::Int(value))?;
            }
            b'L' => {
                let line = self.line()?;
                let value = line.strip_suffix('L').unwrap_or(line).parse().map_or(Node::Huge, Node::Int);
                self.push(value)?;
            }
            0x8a => {
                let n = self.u8()?.into();
                self.long(n)?;
            }
            0x8b => {
                let n = self.u32()? as usize;
                self.long(n)?;
            }
            b'C' | b'U' => {
                let n = self.u8()?.into();
                self.bytes(n)?;
            }
            b'B' | b'T' => {
                let n = self.u32()? as usize;
                self.bytes(n)?;
            }
            0x8e | 0x96 => {
                let n = self.length8()?;
                self.bytes(n)?;
            }
            b'N' => self.push(Node::None)?,
            0x88 => self.push(Node::Bool(true))?,
            0x89 => self.push(Node::Bool(false))?,
            0x8c => {
                let n = self.u8()?.into();
                self.string(n)?;
            }
            b'X' => {
                let n = self.u32()? as usize;
                self.string(n)?;
            }
            0x8d => {
                let n = self.length8()?;
                self.string(n)?;
            }
            b'F' => {
                let value = self.line()?.parse()?;
                self.push(Node::Float(value))?;
            }
            b'G' => {
                let value = f64::from_be_bytes(self.array()?);
                self.push(Node::Float(value))?;
            }
            b']' => self.push(Node::List(Vec::new()))?,
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.append(&items)?;
            }
            b'l' => {
                let items = self.pop_mark()?;
                self.push(Node::List(items))?;
            }
            b')' => self.push(Node::Tuple(Box::default()))?,
            b't' => {
                let items = self.pop_mark()?;
                self.push(Node::Tuple(items.into()))?;
            }
            op @ 0x85..=0x87 => {
                let mut items = (0x85..=op).map(|_| self.pop()).collect::<Result<Vec<_>>>()?;
                items.reverse();
                self.push(Node::Tuple(items.into()))?;
            }
            b'}' => self.push(Node::Dict(Vec::new()))?,
            b'd' => {
                let items = self.pop_mark()?;
                let pairs = Self::pairs(&items)?;
                self.push(Node::Dict(pairs))?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(&items)?;
            }
            0x8f => self.push(Node::Set(Vec::new()))?,
            0x91 => {
                let items = self.pop_mark()?;
                self.push(Node::Set(items))?;
            }
            b'0' => {
                self.pop()?;
            }
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'(' => self.marks.push(self.stack.len()),
            b'1' => {
                self.pop_mark()?;
            }
            b'g' => {
                let index = self.line()?.parse()?;
                self.get(index)?;
            }
            b'h' => {
                let index = self.u8()?.into();
                self.get(index)?;
            }
            b'j' => {
                let index = self.u32()?;
                self.get(index)?;
            }
            b'p' => {
                let index = self.line()?.parse()?;
                self.put(index)?;
            }
            b'q' => {
                let index = self.u8()?.into();
                self.put(index)?;
            }
            b'r' => {
                let index = self.u32()?;
                self.put(index)?;
            }
            0x94 => {
                let index = u32::try_from(self.memo.len())?;
                self.put(index)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (module, name) = (self.text(module)?.to_owned(), self.text(name)?.to_owned());
                self.global(&module, &name)?;
            }
            b'R' | 0x81 => {
                let args = self.pop()?;
                let class = self.pop()?;
                self.call(class, args)?;
            }
            0x92 => {
                // The keyword arguments are not kept: no class that is understood here takes any.
                self.pop()?;
                let args = self.pop()?;
                let class = self.pop()?;
                self.call(class, args)?;
            }
            b'o' => {
                let mut items = self.pop_mark()?;
                ensure!(!items.is_empty(), "an object without a class");
                let class = items.remove(0);
                self.push(Node::Tuple(items.into()))?;
                let args = self.pop()?;
                self.call(class, args)?;
            }
            b'i' => {
                let (module, name) = (self.line()?, self.line()?);
                let items = self.pop_mark()?;
                self.global(module, name)?;
                let class = self.pop()?;
                self.push(Node::Tuple(items.into()))?;
                let args = self.pop()?;
                self.call(class, args)?;
            }
            b'b' => {
                let state = self.pop()?;
                let target = self.top()?;
                // The state of what is not an object here (a dictionary's attributes, say) has nowhere to go.
                if let Node::Object(object) = &mut self.nodes[target as usize] {
                    object.state = Some(state);
                }
            }
            b'P' => {
                let line = self.line()?.into();
                self.push(Node::Str(line))?;
                let id = self.pop()?;
                self.push(Node::Persistent(id))?;
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Node::Persistent(id))?;
            }
            0x80 => {
                let protocol = self.u8()?;
                ensure!(protocol <= 5, "protocol {protocol} is not known");
            }
            0x95 => {
                self.take(8)?;
            }
            b'.' => return Ok(Some(self.pop()?)),
            op @ (0x82..=0x84) => bail!("opcode {op:#04x} names something outside of the file"),
            op => bail!("opcode {op:#04x} is not known"),
        }
        Ok(None)
    }
}
