//! [`View`]: looking at a value of a pickle. Everything asks for what it expects; nothing converts or calls.

use super::{
    Pickle,
    read::{Id, Node, Object},
};

/// A value in a [`Pickle`].
#[derive(Clone, Copy)]
pub struct View<'a> {
    pickle: &'a Pickle,
    id: Id,
}

impl<'a> View<'a> {
    pub(super) fn new(pickle: &'a Pickle, id: Id) -> Self {
        Self { pickle, id }
    }
    fn node(self) -> &'a Node {
        self.pickle.node(self.id)
    }
    fn at(self, id: Id) -> Self {
        Self { pickle: self.pickle, id }
    }
    fn object(self) -> Option<&'a Object> {
        match self.node() {
            Node::Object(object) => Some(object),
            _ => None,
        }
    }

    /// Whether it is `None`.
    #[must_use]
    pub fn is_none(self) -> bool {
        matches!(self.node(), Node::None)
    }

    /// The truth, if it is a `bool`.
    #[must_use]
    pub fn as_bool(self) -> Option<bool> {
        match self.node() {
            Node::Bool(truth) => Some(*truth),
            _ => None,
        }
    }

    /// The number, if it is an `int` of at most 64 bits.
    #[must_use]
    pub fn as_int(self) -> Option<i64> {
        match self.node() {
            Node::Int(number) => Some(*number),
            _ => None,
        }
    }

    /// The number, if it is an `int` that is not negative.
    #[must_use]
    pub fn as_u64(self) -> Option<u64> {
        self.as_int().and_then(|number| u64::try_from(number).ok())
    }

    /// The number, if it is a `float`.
    #[must_use]
    pub fn as_float(self) -> Option<f64> {
        match self.node() {
            Node::Float(number) => Some(*number),
            _ => None,
        }
    }

    /// The text, if it is a `str`.
    #[must_use]
    pub fn as_str(self) -> Option<&'a str> {
        match self.node() {
            Node::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The bytes, if it is `bytes` (or Python 2's `str`).
    #[must_use]
    pub fn as_bytes(self) -> Option<&'a [u8]> {
        match self.node() {
            Node::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The items of a list, a tuple, a set, or of a `torch.Size`.
    #[must_use]
    pub fn items(self) -> Option<Vec<View<'a>>> {
        let ids: &[Id] = match self.node() {
            Node::List(items) | Node::Set(items) => items,
            Node::Tuple(items) => items,
            Node::Object(object) if self.is_call("torch", "Size") => match self.at(object.args).items()?.as_slice() {
                [only] if !only.is_call("torch", "Size") => return only.items(),
                _ => return None,
            },
            _ => return None,
        };
        Some(ids.iter().map(|&id| self.at(id)).collect())
    }

    /// The entries of a dictionary or of an `OrderedDict`, in order.
    #[must_use]
    pub fn entries(self) -> Option<Vec<(View<'a>, View<'a>)>> {
        let pairs = match self.node() {
            Node::Dict(pairs) => pairs,
            Node::Object(object) if self.is_call("collections", "OrderedDict") => &object.pairs,
            _ => return None,
        };
        Some(pairs.iter().map(|&(key, value)| (self.at(key), self.at(value))).collect())
    }

    /// The value under a string key of a dictionary; the last one, as Python does.
    #[must_use]
    pub fn get(self, key: &str) -> Option<View<'a>> {
        self.entries()?.into_iter().rev().find(|(k, _)| k.as_str() == Some(key)).map(|(_, value)| value)
    }

    /// Module and name, if it is a class or function itself.
    #[must_use]
    pub fn global(self) -> Option<(&'a str, &'a str)> {
        match self.node() {
            Node::Global(global) => Some((&global.0, &global.1)),
            _ => None,
        }
    }

    /// Module and name of the class or function that would have been called to make this.
    #[must_use]
    pub fn class(self) -> Option<(&'a str, &'a str)> {
        self.at(self.object()?.class).global()
    }

    fn is_call(self, module: &str, name: &str) -> bool {
        self.class() == Some((module, name))
    }

    /// The arguments of that call.
    #[must_use]
    pub fn args(self) -> Option<Vec<View<'a>>> {
        match self.at(self.object()?.args).node() {
            Node::Tuple(items) => Some(items.iter().map(|&id| self.at(id)).collect()),
            _ => None,
        }
    }

    /// The state that would have been put into the object.
    #[must_use]
    pub fn state(self) -> Option<View<'a>> {
        self.object()?.state.map(|id| self.at(id))
    }

    /// What stands for something stored elsewhere: torch's storages.
    #[must_use]
    pub fn persistent(self) -> Option<View<'a>> {
        match self.node() {
            Node::Persistent(id) => Some(self.at(*id)),
            _ => None,
        }
    }

    /// What it is, in a word, for errors.
    #[must_use]
    pub fn describe(self) -> String {
        match self.node() {
            Node::None => "None".into(),
            Node::Bool(_) => "a bool".into(),
            Node::Int(_) | Node::Huge => "an int".into(),
            Node::Float(_) => "a float".into(),
            Node::Str(_) => "a str".into(),
            Node::Bytes(_) => "bytes".into(),
            Node::List(_) => "a list".into(),
            Node::Tuple(_) => "a tuple".into(),
            Node::Dict(_) => "a dict".into(),
            Node::Set(_) => "a set".into(),
            Node::Global(global) => format!("{}.{}", global.0, global.1),
            Node::Persistent(_) => "something stored elsewhere".into(),
            Node::Object(_) => self.class().map_or("an object".into(), |(module, name)| format!("a {module}.{name}")),
        }
    }
}

impl std::fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.describe())
    }
}
