//! A Llama: embedding, layers, norm, head; forward, and backward layer by layer.
//!
//! Written as for one device; what the tensor axis does to it is in [`parallel`]. The suffixes of tensors name their
//! dimensions: b sequences, s positions, h hidden, v vocabulary, n tokens or heads, d head width.

mod layer;
mod loss;
mod parallel;
pub mod params;
mod rope;
#[cfg(test)]
mod tests;

use anyhow::{Context, Result};
use flow_dist::autograd;
use flow_plan::ModelConfig;
use tch::{Device, Kind, Tensor, no_grad};

use layer::{Layer, Shared, norm};
use loss::Head;
use parallel::{Column, Embedding, Row};
use params::{EMBEDDING, FINAL_NORM, LAYER, Layout, OUTPUT};
use rope::Rope;

pub use parallel::TensorParallel;

/// A Llama with its weights on a device.
#[derive(Debug)]
pub struct Llama {
    embedding: Embedding,
    layers: Vec<Layer>,
    final_norm: Tensor,
    /// The embedding itself, where the two are tied: [v / tensor, h]
    output: Tensor,
    shared: Shared,
    places: Places,
}

/// Where gradients go: places in [`Layout::params`].
#[derive(Debug)]
struct Places {
    embedding: usize,
    layers: Vec<[usize; LAYER.len()]>,
    final_norm: usize,
    output: usize,
}

/// The gradients of a step, summed in fp32 whatever the type of the weights.
#[derive(Debug)]
pub struct Gradients {
    /// All of them.
    pub flat: Tensor,
    /// The same memory by parameter.
    views: Vec<Tensor>,
}

impl Gradients {
    /// Zeros.
    pub fn new(layout: &Layout, device: Device) -> Self {
        let flat = Tensor::zeros([layout.total as i64], (Kind::Float, device));
        let views = views(&flat, layout);
        Self { flat, views }
    }

    fn add(&mut self, place: usize, gradient: Option<Tensor>) {
        if let Some(gradient) = gradient {
            let _ = self.views[place].g_add_(&gradient);
        }
    }
}

/// The parameters as windows on one flat buffer.
pub fn views(flat: &Tensor, layout: &Layout) -> Vec<Tensor> {
    let shape = |shape: &[usize]| shape.iter().map(|&n| n as i64).collect::<Vec<_>>();
    let window = |range: &std::ops::Range<usize>| flat.narrow(0, range.start as i64, range.len() as i64);
    layout.params.iter().map(|param| window(&param.range).view(shape(&param.shape).as_slice())).collect()
}

impl Llama {
    /// A model on the weights in `flat` (fp32 or bf16), for sequences up to `positions`. Whoever writes to `flat`
    /// changes the model.
    pub fn new(
        config: &ModelConfig,
        layout: &Layout,
        flat: &Tensor,
        positions: usize,
        tp: TensorParallel,
    ) -> Result<Self> {
        let weights: Vec<Tensor> = views(flat, layout).iter().map(|view| view.set_requires_grad(true)).collect();
        let place = |key: &str, layer| layout.index(key, layer).with_context(|| format!("the model has no {key}"));
        let places = Places {
            embedding: place(EMBEDDING, None)?,
            layers: (0..layout.layers)
                .map(|layer| {
                    let mut places = [0; LAYER.len()];
                    for (at, key) in places.iter_mut().zip(LAYER) {
                        *at = place(key, Some(layer))?;
                    }
                    Ok(places)
                })
                .collect::<Result<_>>()?,
            final_norm: place(FINAL_NORM, None)?,
            output: place(if config.tie_word_embeddings { EMBEDDING } else { OUTPUT }, None)?,
        };
        let weight = |place: usize| weights[place].shallow_clone();
        let layer = |at: &[usize; 6]| Layer {
            qkv: Column { weight: weight(at[0]) },
            proj: Row { weight: weight(at[1]) },
            fc1: Column { weight: weight(at[2]) },
            fc2: Row { weight: weight(at[3]) },
            input_norm: weight(at[4]),
            post_norm: weight(at[5]),
        };
        Ok(Self {
            embedding: Embedding { weight: weight(places.embedding) },
            layers: places.layers.iter().map(layer).collect(),
            final_norm: weight(places.final_norm),
            output: weight(places.output).detach(),
            shared: Shared {
                tp,
                rope: Rope::new(config, positions, flat.device()),
                eps: config.rms_norm_eps,
                queries: (config.num_attention_heads / config.num_key_value_heads) as i64,
                head_dim: config.head_dim as i64,
            },
            places,
        })
    }

    /// Forward and backward of one micro batch. Returns the sum of −ln p(target) over its tokens (fp64, on the device)
    /// and adds the gradient of `scale` × that sum to `gradients`.
    ///
    /// The graph is cut at every layer: what a layer's backward found is added and freed before the next one begins. With
    /// `recompute`, a layer's graph is not even kept until then, but made again.
    pub fn forward_backward(
        &self,
        ids_bs: &Tensor,
        target_bs: &Tensor,
        scale: f64,
        recompute: bool,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let shared = &self.shared;
        let embedded_bsh = self.embedding.forward(&shared.tp, ids_bs)?;
        let mut tape = Vec::with_capacity(self.layers.len());
        let mut x_bsh = embedded_bsh.detach().set_requires_grad(true);
        for layer in &self.layers {
            let run = || layer.forward(shared, &x_bsh);
            let y_bsh = if recompute { no_grad(run)? } else { run()? };
            let next_bsh = y_bsh.detach().set_requires_grad(true);
            tape.push((std::mem::replace(&mut x_bsh, next_bsh), (!recompute).then_some(y_bsh)));
        }
        let normed_bsh = norm(&x_bsh, &self.final_norm, shared.eps);

        let (loss, d_normed_bsh) = no_grad(|| self.head(&normed_bsh, target_bs, scale, gradients))?;
        let mut found =
            autograd::gradients(&normed_bsh, &d_normed_bsh, &[x_bsh, self.final_norm.shallow_clone()])?.into_iter();
        drop(normed_bsh);
        let missing = "the graph does not lead back to the layer's input";
        let mut d_bsh = found.next().flatten().context(missing)?;
        no_grad(|| gradients.add(self.places.final_norm, found.next().flatten()));

        for (layer, places) in self.layers.iter().zip(&self.places.layers).rev() {
            let (x_bsh, y_bsh) = tape.pop().context("a layer without a tape")?;
            let y_bsh = match y_bsh {
                Some(y_bsh) => y_bsh,
                None => layer.forward(shared, &x_bsh)?,
            };
            let mut wanted = vec![x_bsh];
            wanted.extend(layer.weights().map(Tensor::shallow_clone));
            let mut found = autograd::gradients(&y_bsh, &d_bsh, &wanted)?.into_iter();
            d_bsh = found.next().flatten().context(missing)?;
            no_grad(|| places.iter().zip(found).for_each(|(place, gradient)| gradients.add(*place, gradient)));
        }
        let found = autograd::gradients(&embedded_bsh, &d_bsh, &[self.embedding.weight.shallow_clone()])?;
        no_grad(|| gradients.add(self.places.embedding, found.into_iter().next().flatten()));
        Ok(loss)
    }

    /// The head's loss, and its gradient by the hidden states as the layers before it hold them.
    fn head(
        &self,
        normed_bsh: &Tensor,
        target_bs: &Tensor,
        scale: f64,
        gradients: &mut Gradients,
    ) -> Result<(Tensor, Tensor)> {
        let tp = &self.shared.tp;
        let hidden_bsh = tp.whole_sequence(&normed_bsh.detach())?;
        let (b, s, h) = hidden_bsh.size3()?;
        let head = Head { weight_vh: &self.output, tp };
        let gradient_vh = &mut gradients.views[self.places.output];
        let (loss, d_hidden_nh) =
            head.loss_and_gradient(&hidden_bsh.view([b * s, h]), &target_bs.reshape([b * s]), scale, gradient_vh)?;
        Ok((loss, tp.sum_gradient(d_hidden_nh.view([b, s, h]))?))
    }

    /// Hidden states after the last norm, of the whole sequence, without a graph.
    fn hidden(&self, ids_bs: &Tensor) -> Result<Tensor> {
        no_grad(|| {
            let shared = &self.shared;
            let mut x_bsh = self.embedding.forward(&shared.tp, ids_bs)?;
            for layer in &self.layers {
                x_bsh = layer.forward(shared, &x_bsh)?;
            }
            shared.tp.whole_sequence(&norm(&x_bsh, &self.final_norm, shared.eps))
        })
    }

    /// −ln p(target) of every token, fp32: [b, s].
    pub fn nll(&self, ids_bs: &Tensor, target_bs: &Tensor) -> Result<Tensor> {
        let hidden_bsh = self.hidden(ids_bs)?;
        let (b, s, h) = hidden_bsh.size3()?;
        let head = Head { weight_vh: &self.output, tp: &self.shared.tp };
        no_grad(|| Ok(head.nll(&hidden_bsh.view([b * s, h]), &target_bs.reshape([b * s]))?.view([b, s])))
    }

    /// Logits of every position, fp32: [b, s, v]. For a model that is not spread.
    pub fn logits(&self, ids_bs: &Tensor) -> Result<Tensor> {
        let hidden_bsh = self.hidden(ids_bs)?;
        Ok(no_grad(|| hidden_bsh.linear(&self.output, None::<&Tensor>).to_kind(Kind::Float)))
    }
}
