//! A Llama: embedding, layers, norm, head; forward, and backward layer by layer. A rank of a pipeline has some of them.
//!
//! Written as for one device; what the tensor axis does to it is in [`parallel`], the context axis in [`context`]. The
//! suffixes of tensors name their dimensions: b sequences, s positions, h hidden, v vocabulary, n tokens or heads, d head width.

mod cache;
mod context;
mod inference;
mod layer;
mod loss;
mod parallel;
pub mod params;
mod rope;
mod sight;
#[cfg(test)]
mod tests;

use anyhow::{Context, Result};
use flow_dist::autograd;
use flow_plan::{Documents, ModelConfig, Recompute};
use tch::{Device, Kind, Tensor, no_grad};

use layer::{Layer, Part, Shared, norm};
use loss::Head;
use parallel::{Column, Embedding, Matrix, Row};
use params::{EMBEDDING, FINAL_NORM, LAYER, Layout, OUTPUT};
use rope::Rope;

pub use cache::Cache;
pub use context::ContextParallel;
pub use parallel::TensorParallel;
pub use sight::Sight;

/// A Llama with its weights on a device, or the layers of it that a rank of a pipeline has.
#[derive(Debug)]
pub struct Llama {
    /// The first rank's.
    embedding: Option<(Embedding, usize)>,
    layers: Vec<(Layer, [usize; LAYER.len()])>,
    /// The last rank's.
    end: Option<End>,
    shared: Shared,
    /// The rotations of all positions of a sequence.
    table: Rope,
    /// Of weights and activations, and where they are.
    place: (Kind, Device),
    recompute: Recompute,
    /// Of a model that learns.
    gradients: Option<Gradients>,
}

/// What comes after the layers. Numbers are places in [`Layout::params`], where gradients go.
#[derive(Debug)]
struct End {
    norm: (Tensor, usize),
    /// The embedding itself, where the two are tied: [v / tensor, h]
    output: (Tensor, usize),
}

/// How a model is spread: the axes that its layers know.
#[derive(Clone, Debug)]
pub struct Spread {
    /// Ranks that share each layer.
    pub tensor: TensorParallel,
    /// Ranks that share each sequence.
    pub context: ContextParallel,
}

impl Spread {
    /// One rank has all.
    pub fn none() -> Self {
        Self { tensor: TensorParallel::none(), context: ContextParallel::none() }
    }
}

/// What goes into a rank's layers.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Into the first: [b, s]
    Tokens(&'a Tensor),
    /// Into a later one: `x_bsh` of the rank before.
    Hidden(&'a Tensor),
}

/// What the forward pass of a micro batch keeps for its backward pass.
#[derive(Debug)]
pub struct Tape {
    /// The embedding's output with its graph, on the first rank.
    embedded: Option<Tensor>,
    /// Part by part: its input, a leaf, and its output with its graph, if that is not made again.
    parts: Vec<(Part, Tensor, Option<Tensor>)>,
    sight: Sight,
    /// The last layer's output, a leaf.
    output: Tensor,
}

/// The gradients of a step, summed in fp32 whatever the type of the weights.
#[derive(Debug)]
pub struct Gradients {
    /// All of them.
    pub flat: Tensor,
    /// The same memory by parameter.
    views: Vec<Tensor>,
    /// Where each parameter begins.
    begins: Vec<usize>,
}

const NO_WAY_BACK: &str = "the graph does not lead back to the layer's input";

impl Gradients {
    /// Zeros.
    pub fn new(layout: &Layout, device: Device) -> Self {
        let flat = Tensor::zeros([layout.total as i64], (Kind::Float, device));
        let views = views(&flat, layout);
        Self { flat, views, begins: layout.params.iter().map(|param| param.range.start).collect() }
    }

    fn begins(&self, place: usize) -> usize {
        self.begins[place]
    }

    /// The gradient of the embedding or of its copy, which a tied model's first and last rank share.
    pub fn embedding(&self, layout: &Layout) -> Option<&Tensor> {
        Some(&self.views[layout.index(EMBEDDING, None)?])
    }

    fn add(&self, place: usize, gradient: Option<Tensor>) {
        if let Some(gradient) = gradient {
            let _ = self.views[place].shallow_clone().g_add_(&gradient);
        }
    }
}

/// The parameters as windows on one flat buffer.
pub fn views(flat: &Tensor, layout: &Layout) -> Vec<Tensor> {
    let shape = |shape: &[usize]| shape.iter().map(|&n| n as i64).collect::<Vec<_>>();
    let window = |range: &std::ops::Range<usize>| flat.narrow(0, range.start as i64, range.len() as i64);
    layout.params.iter().map(|param| window(&param.range).view(shape(&param.shape).as_slice())).collect()
}

impl Tape {
    /// What ends of documents change in the micro batch.
    pub fn sight(&self) -> &Sight {
        &self.sight
    }

    /// Room for the gradient by the last layer's output.
    pub fn like_output(&self) -> Tensor {
        self.output.detach().empty_like()
    }
}

impl Llama {
    /// The model, or what `layout` says of it, on the weights in `flat` (fp32 or bf16), for sequences up to `positions`.
    /// Whoever writes to `flat` changes the model. One that learns has `gradients`.
    pub fn new(
        config: &ModelConfig,
        layout: &Layout,
        flat: &Tensor,
        positions: usize,
        spread: Spread,
        recompute: Recompute,
        gradients: Option<Gradients>,
    ) -> Result<Self> {
        let weights = views(flat, layout);
        let place = |key: &str, layer| layout.index(key, layer).with_context(|| format!("the model has no {key}"));
        let matrix = |place: usize| Matrix {
            weight: weights[place].shallow_clone(),
            gradient: gradients.as_ref().map(|gradients| gradients.views[place].shallow_clone()),
        };
        // What autograd finds the gradients of.
        let weight = |place: usize| weights[place].set_requires_grad(true);
        let layer = |layer: usize| -> Result<_> {
            let mut at = [0; LAYER.len()];
            for (at, key) in at.iter_mut().zip(LAYER) {
                *at = place(key, Some(layer))?;
            }
            let weights = Layer {
                qkv: Column(matrix(at[0])),
                proj: Row(matrix(at[1])),
                fc1: Column(matrix(at[2])),
                fc2: Row(matrix(at[3])),
                input_norm: weight(at[4]),
                post_norm: weight(at[5]),
            };
            Ok((weights, at))
        };
        let (stage, stages) = layout.share.pipeline;
        let embedding = || -> Result<_> {
            let at = place(EMBEDDING, None)?;
            Ok((Embedding { weight: weight(at) }, at))
        };
        let end = || -> Result<_> {
            let (norm, output) =
                (place(FINAL_NORM, None)?, place(if config.tie_word_embeddings { EMBEDDING } else { OUTPUT }, None)?);
            Ok(End { norm: (weight(norm), norm), output: (weights[output].shallow_clone(), output) })
        };
        let all = Tensor::arange(positions as i64, (Kind::Int64, Device::Cpu));
        let table = Rope::new(config, &all, flat.device());
        let rope = Rope::new(config, &spread.context.part(&all, 0), flat.device());
        Ok(Self {
            embedding: (stage == 0).then(embedding).transpose()?,
            layers: layout.held.clone().map(layer).collect::<Result<_>>()?,
            end: (stage + 1 == stages).then(end).transpose()?,
            shared: Shared {
                tp: spread.tensor,
                cp: spread.context,
                rope,
                eps: config.rms_norm_eps,
                queries: (config.num_attention_heads / config.num_key_value_heads) as i64,
                head_dim: config.head_dim as i64,
            },
            table,
            place: (flat.kind(), flat.device()),
            recompute,
            gradients,
        })
    }

    /// What `documents` change in a micro batch of `rows`, whole sequences.
    pub fn sight(&self, documents: &Documents, rows: &[&[i64]]) -> Sight {
        let (kind, device) = self.place;
        Sight::new(documents, rows, &self.table, &self.shared.cp, kind, device)
    }

    /// The sums of the gradients of what was learned from. Whoever begins a step makes them zero.
    ///
    /// # Errors
    /// The model does not learn.
    pub fn gradients(&self) -> Result<&Gradients> {
        self.gradients.as_ref().context("a model without gradients does not learn")
    }

    /// Which parts a layer is done in, and whether the graph of each is kept until its backward pass or made again then.
    fn parts(&self) -> &'static [(Part, bool)] {
        match self.recompute {
            Recompute::None => &[(Part::Whole, true)],
            Recompute::Selective => &[(Part::Attention, true), (Part::FeedForward, false)],
            Recompute::Full => &[(Part::Whole, false)],
        }
    }

    /// Through this rank's layers. The hidden states come out of the graph: it is cut at every part, so that what
    /// [`Llama::backward`] finds of one is added and freed before the next one begins.
    pub fn forward(&self, input: Input<'_>, sight: Sight) -> Result<(Tape, Tensor)> {
        let shared = &self.shared;
        let leaf = |x: &Tensor| x.detach().set_requires_grad(true);
        let embedded = self.embed(input)?;
        let mut x_bsh = match input {
            Input::Hidden(x_bsh) => leaf(x_bsh),
            Input::Tokens(_) => leaf(embedded.as_ref().context("only the first rank has the embedding")?),
        };
        let mut parts = Vec::with_capacity(self.layers.len() * self.parts().len());
        for (layer, _) in &self.layers {
            for (part, kept) in self.parts() {
                let run = || layer.forward(shared, &sight, *part, &x_bsh);
                let y_bsh = if *kept { run()? } else { no_grad(run)? };
                let next_bsh = leaf(&y_bsh);
                parts.push((*part, std::mem::replace(&mut x_bsh, next_bsh), kept.then_some(y_bsh)));
            }
        }
        let hidden_bsh = x_bsh.detach();
        Ok((Tape { embedded, parts, sight, output: x_bsh }, hidden_bsh))
    }

    fn embed(&self, input: Input<'_>) -> Result<Option<Tensor>> {
        match (input, &self.embedding) {
            (Input::Tokens(ids_bs), Some((embedding, _))) => Ok(Some(embedding.forward(&self.shared.tp, ids_bs)?)),
            _ => Ok(None),
        }
    }

    /// On the last rank: the sum of −ln p(target) over what is learned of a micro batch (fp64, on the device), and the gradient
    /// of `scale` × that sum by the hidden states that [`Llama::forward`] gave. That by the norm and the output layer is added.
    pub fn loss(&self, tape: &Tape, target_bs: &Tensor, scale: f64) -> Result<(Tensor, Tensor)> {
        let (end, gradients) = (self.end()?, self.gradients()?);
        let (norm_h, place) = &end.norm;
        let normed_bsh = norm(&tape.output, norm_h, self.shared.eps);
        let (loss, d_normed_bsh) =
            no_grad(|| self.head(end, &normed_bsh, target_bs, tape.sight.learned.as_ref(), scale))?;
        let wanted = [tape.output.shallow_clone(), norm_h.shallow_clone()];
        let mut found = autograd::gradients(&normed_bsh, &d_normed_bsh, &wanted)?.into_iter();
        let d_bsh = found.next().flatten().context(NO_WAY_BACK)?;
        no_grad(|| gradients.add(*place, found.next().flatten()));
        Ok((loss, d_bsh))
    }

    /// Back through this rank's layers with the gradient by what [`Llama::forward`] gave: adds the gradients of the
    /// weights, and returns that by the hidden states that went in, where there were some. `done` hears of the first
    /// element from which on all matrices' gradients have this micro batch in them.
    pub fn backward(
        &self,
        tape: Tape,
        mut d_bsh: Tensor,
        done: &mut dyn FnMut(&Gradients, usize) -> Result<()>,
    ) -> Result<Option<Tensor>> {
        let gradients = self.gradients()?;
        let mut parts = tape.parts;
        drop(tape.output);
        for (layer, places) in self.layers.iter().rev() {
            for _ in self.parts() {
                let (part, x_bsh, y_bsh) = parts.pop().context("a layer without a tape")?;
                let y_bsh = match y_bsh {
                    Some(y_bsh) => y_bsh,
                    None => layer.forward(&self.shared, &tape.sight, part, &x_bsh)?,
                };
                let norms = layer.norms(part);
                let mut wanted = vec![x_bsh];
                wanted.extend(norms.iter().map(|(_, norm)| norm.shallow_clone()));
                let mut found = autograd::gradients(&y_bsh, &d_bsh, &wanted)?.into_iter();
                d_bsh = found.next().flatten().context(NO_WAY_BACK)?;
                no_grad(|| norms.iter().zip(found).for_each(|((at, _), found)| gradients.add(places[*at], found)));
            }
            done(gradients, gradients.begins(places[0]))?;
        }
        let (Some(embedded_bsh), Some((embedding, place))) = (tape.embedded, &self.embedding) else {
            return Ok(Some(d_bsh));
        };
        let found = autograd::gradients(&embedded_bsh, &d_bsh, &[embedding.weight.shallow_clone()])?;
        no_grad(|| gradients.add(*place, found.into_iter().next().flatten()));
        done(gradients, 0)?;
        Ok(None)
    }

    fn end(&self) -> Result<&End> {
        self.end.as_ref().context("only the last rank has the output layer")
    }

    /// The head's loss, and its gradient by the hidden states as the layers before it hold them.
    fn head(
        &self,
        end: &End,
        normed_bsh: &Tensor,
        target_bs: &Tensor,
        learned_bs: Option<&Tensor>,
        scale: f64,
    ) -> Result<(Tensor, Tensor)> {
        let tp = &self.shared.tp;
        let hidden_bsh = tp.whole_sequence(&normed_bsh.detach())?;
        let (b, s, h) = hidden_bsh.size3()?;
        let head = Head { weight_vh: &end.output.0, tp };
        let gradient_vh = &self.gradients()?.views[end.output.1];
        let learned_n = learned_bs.map(|learned_bs| learned_bs.reshape([b * s]));
        let target_n = target_bs.reshape([b * s]);
        let (loss, d_hidden_nh) =
            head.loss_and_gradient(&hidden_bsh.view([b * s, h]), &target_n, learned_n.as_ref(), scale, gradient_vh)?;
        Ok((loss, tp.sum_gradient(d_hidden_nh.view([b, s, h]))?))
    }

    /// Through this rank's layers without a graph.
    pub fn hidden(&self, input: Input<'_>, sight: &Sight) -> Result<Tensor> {
        no_grad(|| {
            let mut x_bsh = match input {
                Input::Hidden(x_bsh) => x_bsh.shallow_clone(),
                Input::Tokens(_) => self.embed(input)?.context("only the first rank has the embedding")?,
            };
            for (layer, _) in &self.layers {
                x_bsh = layer.forward(&self.shared, sight, Part::Whole, &x_bsh)?;
            }
            Ok(x_bsh)
        })
    }

    /// On the last rank: −ln p(target) of every token after [`Llama::hidden`], fp32: [b, s].
    pub fn nll(&self, hidden_bsh: &Tensor, target_bs: &Tensor) -> Result<Tensor> {
        let end = self.end()?;
        no_grad(|| {
            let normed_bsh = self.shared.tp.whole_sequence(&norm(hidden_bsh, &end.norm.0, self.shared.eps))?;
            let (b, s, h) = normed_bsh.size3()?;
            let head = Head { weight_vh: &end.output.0, tp: &self.shared.tp };
            Ok(head.nll(&normed_bsh.view([b * s, h]), &target_bs.reshape([b * s]))?.view([b, s]))
        })
    }
}
