//! [`Encoder`]: writes protocol 2, which both `pickle.load` and torch's restricted `weights_only` loader read.
//!
//! Strings and classes are written once and then referred to through the memo, so a table with a million mentions of
//! the same tensor name stays small. The same calls give the same bytes.

use std::collections::HashMap;

/// A value to be written: small things; big tables are written with an [`Encoder`] as they come.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `None`
    None,
    /// `True`, `False`
    Bool(bool),
    /// `int`
    Int(i64),
    /// `float`
    Float(f64),
    /// `str`
    Str(String),
    /// `list`
    List(Vec<Value>),
    /// `tuple`
    Tuple(Vec<Value>),
    /// `dict`, in this order
    Dict(Vec<(Value, Value)>),
    /// A class or function: module, name.
    Global(&'static str, String),
    /// A call of the first with the rest.
    Call(Box<Value>, Vec<Value>),
    /// Something stored elsewhere.
    Persistent(Box<Value>),
}

impl Value {
    /// A `str`.
    pub fn str(text: impl Into<String>) -> Self {
        Self::Str(text.into())
    }

    /// A `dict` with string keys, in this order.
    pub fn dict<'a>(entries: impl IntoIterator<Item = (&'a str, Value)>) -> Self {
        Self::Dict(entries.into_iter().map(|(key, value)| (Self::str(key), value)).collect())
    }

    /// The pickle of this value alone.
    #[must_use]
    pub fn pickle(&self) -> Vec<u8> {
        let mut encoder = Encoder::new();
        encoder.value(self);
        encoder.finish()
    }
}

/// Writes a pickle piece by piece: what is written last lies on top of the loader's stack.
#[derive(Debug)]
pub struct Encoder {
    out: Vec<u8>,
    memo: HashMap<Memo, u32>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
enum Memo {
    Str(String),
    Global(String, String),
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// An empty pickle of protocol 2.
    #[must_use]
    pub fn new() -> Self {
        Self { out: vec![0x80, 2], memo: HashMap::new() }
    }

    /// The end: the value on top is the pickle's.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.out.push(b'.');
        self.out
    }

    fn recall(&mut self, memo: &Memo) -> bool {
        let Some(&index) = self.memo.get(memo) else { return false };
        match u8::try_from(index) {
            Ok(index) => self.out.extend([b'h', index]),
            Err(_) => {
                self.out.push(b'j');
                self.out.extend(index.to_le_bytes());
            }
        }
        true
    }

    fn remember(&mut self, memo: Memo) {
        let index = u32::try_from(self.memo.len()).expect("fewer than 2³² names");
        match u8::try_from(index) {
            Ok(index) => self.out.extend([b'q', index]),
            Err(_) => {
                self.out.push(b'r');
                self.out.extend(index.to_le_bytes());
            }
        }
        self.memo.insert(memo, index);
    }

    /// A `str`.
    ///
    /// # Panics
    /// It has 4 GiB or more.
    pub fn str(&mut self, text: &str) -> &mut Self {
        let memo = Memo::Str(text.to_owned());
        if !self.recall(&memo) {
            self.out.push(b'X');
            self.out.extend(u32::try_from(text.len()).expect("a string is shorter than 4 GiB").to_le_bytes());
            self.out.extend(text.as_bytes());
            self.remember(memo);
        }
        self
    }

    /// An `int`.
    pub fn int(&mut self, number: i64) -> &mut Self {
        if let Ok(byte) = u8::try_from(number) {
            self.out.extend([b'K', byte]);
        } else if let Ok(short) = u16::try_from(number) {
            self.out.push(b'M');
            self.out.extend(short.to_le_bytes());
        } else if let Ok(word) = i32::try_from(number) {
            self.out.push(b'J');
            self.out.extend(word.to_le_bytes());
        } else {
            self.out.extend([0x8a, 8]);
            self.out.extend(number.to_le_bytes());
        }
        self
    }

    /// A class or function.
    pub fn global(&mut self, module: &str, name: &str) -> &mut Self {
        let memo = Memo::Global(module.to_owned(), name.to_owned());
        if !self.recall(&memo) {
            self.out.push(b'c');
            for part in [module, name] {
                self.out.extend(part.as_bytes());
                self.out.push(b'\n');
            }
            self.remember(memo);
        }
        self
    }

    /// `None`
    pub fn none(&mut self) -> &mut Self {
        self.op(b'N')
    }

    /// `True` or `False`
    pub fn bool(&mut self, truth: bool) -> &mut Self {
        self.op(if truth { 0x88 } else { 0x89 })
    }

    /// A mark: what is written up to [`Encoder::tuple`], [`Encoder::items`] or [`Encoder::pairs`] belongs to it.
    pub fn mark(&mut self) -> &mut Self {
        self.op(b'(')
    }

    /// Everything since the mark as a tuple.
    pub fn tuple(&mut self) -> &mut Self {
        self.op(b't')
    }

    /// An empty list.
    pub fn list(&mut self) -> &mut Self {
        self.op(b']')
    }

    /// Everything since the mark goes into the list below it.
    pub fn items(&mut self) -> &mut Self {
        self.op(b'e')
    }

    /// An empty dictionary.
    pub fn dict(&mut self) -> &mut Self {
        self.op(b'}')
    }

    /// Keys and values since the mark go into the dictionary below it.
    pub fn pairs(&mut self) -> &mut Self {
        self.op(b'u')
    }

    /// The class or function and the tuple of arguments on top become its result.
    pub fn reduce(&mut self) -> &mut Self {
        self.op(b'R')
    }

    /// A new object of a class, without arguments; [`Encoder::build`] gives it its state.
    pub fn new_object(&mut self, module: &str, name: &str) -> &mut Self {
        self.global(module, name).op(b')').op(0x81)
    }

    /// The state on top goes into the object below it.
    pub fn build(&mut self) -> &mut Self {
        self.op(b'b')
    }

    fn op(&mut self, op: u8) -> &mut Self {
        self.out.push(op);
        self
    }

    fn tuple_of(&mut self, items: &[Value]) {
        match items {
            [] => {
                self.op(b')');
            }
            [..] if items.len() <= 3 => {
                for item in items {
                    self.value(item);
                }
                self.op(0x84 + items.len() as u8);
            }
            _ => {
                self.mark();
                for item in items {
                    self.value(item);
                }
                self.tuple();
            }
        }
    }

    /// Any value.
    pub fn value(&mut self, value: &Value) -> &mut Self {
        match value {
            Value::None => {
                self.none();
            }
            Value::Bool(truth) => {
                self.bool(*truth);
            }
            Value::Int(number) => {
                self.int(*number);
            }
            Value::Float(number) => {
                self.out.push(b'G');
                self.out.extend(number.to_be_bytes());
            }
            Value::Str(text) => {
                self.str(text);
            }
            Value::List(items) => {
                self.list().mark();
                for item in items {
                    self.value(item);
                }
                self.items();
            }
            Value::Tuple(items) => self.tuple_of(items),
            Value::Dict(entries) => {
                self.dict().mark();
                for (key, value) in entries {
                    self.value(key).value(value);
                }
                self.pairs();
            }
            Value::Global(module, name) => {
                self.global(module, name);
            }
            Value::Call(function, args) => {
                self.value(function);
                self.tuple_of(args);
                self.reduce();
            }
            Value::Persistent(id) => {
                self.value(id).op(b'Q');
            }
        }
        self
    }
}
