//! The tensors of one layer.

use crate::model::tensor::Tensor;

/// The tensors of one layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layer {
    name: String,
    tensors: Vec<Tensor>,
}

impl Layer {
    pub(crate) fn new(name: &str, tensors: Vec<Tensor>) -> Self {
        Layer { name: name.to_owned(), tensors }
    }

    /// The layer's name, such as `model.layers.3`. For tensors outside every stack: the module's
    /// name, such as `model.embed_tokens`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its tensors, in the order of the file.
    #[must_use]
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensor with that full name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.iter().find(|t| t.spec().name() == name)
    }

    /// Its tensors, to keep.
    #[must_use]
    pub fn into_tensors(self) -> Vec<Tensor> {
        self.tensors
    }

    /// Original bytes of all its tensors.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes().len() as u64).sum()
    }
}
