//! A dump as MediaWiki exports it: page after page of a stream of XML.

use std::{collections::HashSet, io::BufRead, path::PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use quick_xml::{
    Reader,
    escape::resolve_xml_entity,
    events::{BytesRef, BytesStart, Event},
};

/// What a dump says of its site.
#[derive(Clone, Debug)]
pub struct Site {
    /// What `?curid=7` goes behind.
    pub url: String,
    /// What the namespaces of files are called, in lower case.
    pub files: HashSet<String>,
    /// What the namespace of categories is called, in lower case.
    pub categories: HashSet<String>,
}

impl Default for Site {
    fn default() -> Self {
        // These names hold on every wiki beside its own; and two Japanese ones, which its dumps do not name.
        let files = ["file", "image", "media", "画像"].map(str::to_owned).into();
        Self { url: String::new(), files, categories: ["category", "カテゴリ"].map(str::to_owned).into() }
    }
}

/// A page, in its last revision.
#[derive(Debug, Default)]
pub struct Page {
    pub id: String,
    pub revision: String,
    pub title: String,
    pub namespace: String,
    pub model: String,
    pub redirect: bool,
    pub text: String,
}

/// The pages of a dump.
pub struct Dump<R> {
    path: PathBuf,
    reader: Reader<R>,
    buffer: Vec<u8>,
    /// The names of the open elements.
    open: Vec<String>,
    /// Its root was closed.
    whole: bool,
    page: Page,
    pub site: Site,
}

impl<R: BufRead> Dump<R> {
    /// The dump that `source` holds; the path is for errors.
    pub fn new(path: PathBuf, source: R) -> Self {
        let mut reader = Reader::from_reader(source);
        reader.config_mut().expand_empty_elements = true;
        let (open, page, site) = (Vec::new(), Page::default(), Site::default());
        Self { path, reader, buffer: Vec::new(), open, whole: false, page, site }
    }

    /// The next page, of whatever kind.
    ///
    /// # Errors
    /// The source cannot be read, is no dump, or ends in its middle: with the place.
    pub fn next(&mut self) -> Result<Option<Page>> {
        loop {
            self.buffer.clear();
            let mut buffer = std::mem::take(&mut self.buffer);
            let event = match self.reader.read_event_into(&mut buffer) {
                Ok(event) => event,
                // What cannot be decompressed says so itself.
                Err(quick_xml::Error::Io(error)) => return Err(anyhow!("{error}")),
                Err(error) => return Err(anyhow!(error).context(self.place())),
            };
            let mut done = None;
            match &event {
                Event::Start(start) => self.start(start)?,
                Event::End(_) => {
                    let name = self.open.pop();
                    self.whole |= self.open.is_empty();
                    if name.as_deref() == Some("page") {
                        done = Some(std::mem::take(&mut self.page));
                    }
                }
                Event::Text(text) => {
                    let text = text.decode().with_context(|| self.place())?;
                    self.text(&text);
                }
                Event::CData(text) => {
                    let text = text.decode().with_context(|| self.place())?;
                    self.text(&text);
                }
                Event::GeneralRef(reference) => {
                    let text = resolved(reference).with_context(|| self.place())?;
                    self.text(&text);
                }
                Event::Eof if self.whole => return Ok(None),
                Event::Eof => {
                    let Some(within) = self.open.last() else {
                        bail!("{} holds no dump of a wiki: it is empty, or has no <mediawiki>", self.path.display());
                    };
                    bail!("{}: the dump ends inside of <{within}>: it was copied or downloaded in part", self.place());
                }
                _ => {}
            }
            drop(event);
            self.buffer = buffer;
            if done.is_some() {
                return Ok(done);
            }
        }
    }

    fn place(&self) -> String {
        format!("{}, at byte {} of its XML", self.path.display(), self.reader.buffer_position())
    }

    fn start(&mut self, start: &BytesStart<'_>) -> Result<()> {
        let name = String::from_utf8_lossy(start.local_name().as_ref()).into_owned();
        match (self.open.last().map_or("", String::as_str), name.as_str()) {
            ("", "mediawiki") => {}
            ("", _) => bail!("{}: <{name}> begins no dump of a wiki, <mediawiki> does", self.place()),
            (_, "page") => self.page = Page::default(),
            ("page", "redirect") => self.page.redirect = true,
            // Of a page's history the last one counts.
            ("page", "revision") => {
                self.page.text.clear();
                self.page.revision.clear();
                self.page.model.clear();
            }
            ("namespaces", "namespace") => {
                let key = start.try_get_attribute("key").ok().flatten();
                // What they are called here comes as text.
                let kind = match key.as_ref().map(|key| &*key.value) {
                    Some(b"-2" | b"6") => "files",
                    Some(b"14") => "categories",
                    _ => "others",
                };
                self.open.push(kind.to_owned());
                return Ok(());
            }
            _ => {}
        }
        self.open.push(name);
        Ok(())
    }

    fn text(&mut self, text: &str) {
        let [.., parent, name] = self.open.as_slice() else { return };
        let page = &mut self.page;
        let field = match (parent.as_str(), name.as_str()) {
            ("page", "id") => &mut page.id,
            ("page", "title") => &mut page.title,
            ("page", "ns") => &mut page.namespace,
            ("revision", "id") => &mut page.revision,
            ("revision", "model") => &mut page.model,
            ("revision", "text") => &mut page.text,
            ("siteinfo", "base") => {
                self.site.url = text.rsplit_once('/').map_or(text, |(url, _)| url).to_owned();
                return;
            }
            ("namespaces", "files") => {
                self.site.files.insert(text.to_lowercase());
                return;
            }
            ("namespaces", "categories") => {
                self.site.categories.insert(text.to_lowercase());
                return;
            }
            _ => return,
        };
        field.push_str(text);
    }
}

/// What `&amp;` stands for. A number that is no character, as `&#0;`, is one that is shown in its place, as browsers do: for one
/// such a whole dump is not lost.
fn resolved(reference: &BytesRef<'_>) -> Result<String> {
    if reference.is_char_ref() {
        return Ok(reference.resolve_char_ref().ok().flatten().unwrap_or(char::REPLACEMENT_CHARACTER).into());
    }
    let name = reference.decode()?;
    resolve_xml_entity(&name).map(str::to_owned).with_context(|| format!("`&{name};` is not known"))
}
