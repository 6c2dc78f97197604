//! The CPU. Operations are computed when they are recorded, on the threads of the caller's pool.

use std::cell::{Ref, RefCell};
use std::sync::mpsc::{Receiver, Sender, channel};

use bigsmall_format::{Dtype, EncodedTensor, TensorSpec};
use bigsmall_tbe::{Backend as Kernels, Factor, Form, Plain, Resident, matmul_many};

use crate::Result;
use crate::backend::{Backend, Matrices, Operations};
use crate::config::Heads;
use crate::math;
use crate::source::{Source, to_f32};

/// The CPU, with the kernels of one instruction set.
pub(crate) struct Cpu {
    kernels: Kernels,
    /// A thread that reads the layers that are streamed.
    reader: Sender<Job>,
}

/// The matrices of a layer to read, and where they go.
type Job = (Vec<(Source, String)>, Sender<Result<Vec<EncodedTensor>>>);

impl Cpu {
    pub(crate) fn new(kernels: Kernels) -> Self {
        let (reader, jobs) = channel::<Job>();
        // Ends with the sender.
        std::thread::spawn(move || {
            for (matrices, to) in jobs {
                let read = matrices.iter().map(|(source, name)| source.encoded(name)).collect();
                // Nobody waits any more if the model is gone.
                let _ = to.send(read);
            }
        });
        Cpu { kernels, reader }
    }
}

pub(crate) enum Matrix {
    Resident(Resident),
    /// The description and the plain bytes of the matrix that was decoded last.
    Place(RefCell<(TensorSpec, Vec<u8>)>),
}

/// A matrix while it is multiplied.
enum Borrowed<'a> {
    Resident(&'a Resident),
    Plain(Ref<'a, (TensorSpec, Vec<u8>)>, Kernels),
}

impl Borrowed<'_> {
    fn factor(&self) -> Result<Factor<'_>> {
        Ok(match self {
            Borrowed::Resident(resident) => (*resident).into(),
            Borrowed::Plain(place, kernels) => {
                Plain::new(&place.0, &place.1)?.with_backend(*kernels)?.into()
            }
        })
    }

    fn rows(&self) -> usize {
        match self {
            Borrowed::Resident(resident) => resident.rows(),
            Borrowed::Plain(place, _) => place.0.shape()[0] as usize,
        }
    }
}

/// A matrix that is read from its source for every token.
pub(crate) struct Packed {
    source: Source,
    name: String,
    bytes: u64,
}

impl Backend for Cpu {
    const NAME: &'static str = "cpu";
    const BATCH: usize = 64;
    const RECORDS_AHEAD: bool = false;
    const PLAIN: Form = Form::Plain;

    type Form = Form;
    type Matrix = Matrix;
    type Vector = RefCell<Vec<f32>>;
    type Ids = RefCell<Vec<u32>>;
    type Commands = ();
    type Packed = Packed;
    type Sent = Receiver<Result<Vec<EncodedTensor>>>;
    type Scratch = ();
    type Operations<'a> = &'a Cpu;

    fn description(&self) -> String {
        format!("CPU, {} kernels, {} threads", self.kernels, rayon::current_num_threads())
    }

    fn matrix(&self, tensor: &EncodedTensor, form: Option<Form>) -> Result<Matrix> {
        let encoding = bigsmall_io::encoding(tensor.encoding())?;
        Ok(Matrix::Resident(match form {
            Some(form) => {
                Resident::with_form(tensor, encoding, form)?.with_backend(self.kernels)?
            }
            None => Resident::for_backend(tensor, encoding, self.kernels)?,
        }))
    }

    fn matrix_bytes(matrix: &Matrix) -> u64 {
        match matrix {
            Matrix::Resident(resident) => resident.byte_len(),
            Matrix::Place(place) => place.borrow().0.byte_len(),
        }
    }

    fn vector(&self, n: usize) -> Result<Self::Vector> {
        Ok(RefCell::new(vec![0.0; n]))
    }

    fn vector_bytes(vector: &Self::Vector) -> u64 {
        4 * vector.borrow().len() as u64
    }

    fn write(&self, vector: &Self::Vector, values: &[f32]) -> Result<()> {
        vector.borrow_mut()[..values.len()].copy_from_slice(values);
        Ok(())
    }

    fn read(&self, vector: &Self::Vector, values: &mut [f32]) -> Result<()> {
        values.copy_from_slice(&vector.borrow()[..values.len()]);
        Ok(())
    }

    fn ids(&self, n: usize) -> Result<Self::Ids> {
        Ok(RefCell::new(vec![0; n]))
    }

    fn write_ids(&self, ids: &Self::Ids, values: &[u32]) -> Result<()> {
        ids.borrow_mut()[..values.len()].copy_from_slice(values);
        Ok(())
    }

    fn record(&self, record: impl FnOnce(&mut &Cpu) -> Result<()>) -> Result<()> {
        record(&mut &*self)
    }

    fn run<M>(
        &self,
        (): (),
        from: &Self::Ids,
        ids: &mut [u32],
        meanwhile: impl FnOnce() -> Result<M>,
    ) -> Result<M> {
        ids.copy_from_slice(&from.borrow()[..ids.len()]);
        meanwhile()
    }

    fn pack(&self, source: &Source, name: &str, shape: [usize; 2]) -> Result<Packed> {
        let bytes = source.stored_bytes(name, shape)?;
        Ok(Packed { source: source.clone(), name: name.to_owned(), bytes })
    }

    fn packed_tensor(packed: &Packed) -> Result<EncodedTensor> {
        packed.source.encoded(&packed.name)
    }

    fn packed_bytes(packed: &Packed) -> u64 {
        packed.bytes
    }

    fn place(&self, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        let spec = TensorSpec::new(name, Dtype::BF16, &shape.map(|n| n as u64))?;
        let bytes = vec![0; spec.byte_len() as usize];
        Ok(Matrix::Place(RefCell::new((spec, bytes))))
    }

    fn scratch(&self, _: u64) -> Result<((), u64)> {
        Ok(((), 0))
    }

    fn check(&self, _: &Packed, (): &()) -> Result<()> {
        // Decoding on the CPU finds all damage.
        Ok(())
    }

    fn send(&self, layer: &Matrices<Packed>) -> Result<Self::Sent> {
        let (to, from) = channel();
        let names = layer.iter().map(|packed| (packed.source.clone(), packed.name.clone()));
        self.reader.send((names.collect(), to)).map_err(|_| "the reader has ended")?;
        Ok(from)
    }
}

impl Operations for &Cpu {
    type Backend = Cpu;

    fn embed(
        &mut self,
        matrix: &Matrix,
        ids: &RefCell<Vec<u32>>,
        rows: usize,
        y: &RefCell<Vec<f32>>,
    ) -> Result<()> {
        let Matrix::Resident(matrix) = matrix else {
            return Err("the embedding is never streamed".into());
        };
        let dtype = matrix.spec().dtype();
        let mut bytes = vec![0; matrix.cols() * dtype.unit_bytes()];
        let mut y = y.borrow_mut();
        for (&id, y) in ids.borrow()[..rows].iter().zip(y.chunks_exact_mut(matrix.cols())) {
            matrix.decode_rows(id as usize..id as usize + 1, &mut bytes)?;
            y.copy_from_slice(&to_f32(dtype, &bytes)?);
        }
        Ok(())
    }

    fn matmul<const N: usize>(
        &mut self,
        matrices: [&Matrix; N],
        x: &RefCell<Vec<f32>>,
        rows: usize,
        y: [&RefCell<Vec<f32>>; N],
    ) -> Result<()> {
        let matrices = matrices.map(|matrix| match matrix {
            Matrix::Resident(resident) => Borrowed::Resident(resident),
            Matrix::Place(place) => Borrowed::Plain(place.borrow(), self.kernels),
        });
        let x = x.borrow();
        let mut y = y.map(RefCell::borrow_mut);
        let mut outputs = Vec::with_capacity(N);
        let mut factors = Vec::with_capacity(N);
        for (matrix, y) in matrices.iter().zip(&mut y) {
            outputs.push(&mut y[..rows * matrix.rows()]);
            factors.push(matrix.factor()?);
        }
        let columns = match &matrices[0] {
            Borrowed::Resident(resident) => resident.cols(),
            Borrowed::Plain(place, _) => place.0.shape()[1] as usize,
        };
        Ok(matmul_many(&factors, &x[..rows * columns], rows, &mut outputs)?)
    }

    fn rms_norm(
        &mut self,
        x: &RefCell<Vec<f32>>,
        weight: &RefCell<Vec<f32>>,
        epsilon: f32,
        rows: usize,
        n: usize,
        y: &RefCell<Vec<f32>>,
    ) -> Result<()> {
        let (x, weight, mut y) = (x.borrow(), weight.borrow(), y.borrow_mut());
        for (x, y) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)).take(rows) {
            math::rms_norm(x, &weight, epsilon, y);
        }
        Ok(())
    }

    fn rope(
        &mut self,
        x: &RefCell<Vec<f32>>,
        angles: &RefCell<Vec<f32>>,
        heads: usize,
        dim: usize,
        position: usize,
        rows: usize,
    ) -> Result<()> {
        let (mut x, angles) = (x.borrow_mut(), angles.borrow());
        let angles = angles.chunks_exact(dim).skip(position);
        for (x, angles) in x.chunks_exact_mut(heads * dim).zip(angles).take(rows) {
            x.chunks_exact_mut(dim).for_each(|head| math::rotate(head, angles));
        }
        Ok(())
    }

    fn copy(
        &mut self,
        from: &RefCell<Vec<f32>>,
        at: usize,
        to: &RefCell<Vec<f32>>,
        to_at: usize,
        n: usize,
    ) -> Result<()> {
        to.borrow_mut()[to_at..][..n].copy_from_slice(&from.borrow()[at..][..n]);
        Ok(())
    }

    fn attention(
        &mut self,
        queries: &RefCell<Vec<f32>>,
        keys: &RefCell<Vec<f32>>,
        values: &RefCell<Vec<f32>>,
        heads: Heads,
        position: usize,
        rows: usize,
        y: &RefCell<Vec<f32>>,
    ) -> Result<()> {
        let n = rows * heads.queries * heads.dim;
        let (queries, keys, values) = (queries.borrow(), keys.borrow(), values.borrow());
        math::attention(&queries[..n], &keys, &values, heads, position, &mut y.borrow_mut()[..n]);
        Ok(())
    }

    fn silu_mul(
        &mut self,
        gate: &RefCell<Vec<f32>>,
        up: &RefCell<Vec<f32>>,
        n: usize,
    ) -> Result<()> {
        math::silu_mul(&mut gate.borrow_mut()[..n], &up.borrow()[..n]);
        Ok(())
    }

    fn add(&mut self, x: &RefCell<Vec<f32>>, y: &RefCell<Vec<f32>>, n: usize) -> Result<()> {
        let (mut x, y) = (x.borrow_mut(), y.borrow());
        x[..n].iter_mut().zip(&y[..n]).for_each(|(x, y)| *x += y);
        Ok(())
    }

    fn argmax(&mut self, x: &RefCell<Vec<f32>>, n: usize, to: &RefCell<Vec<u32>>) -> Result<()> {
        to.borrow_mut()[0] = math::argmax(&x.borrow()[..n]);
        Ok(())
    }

    fn unpack(
        &mut self,
        sent: &Receiver<Result<Vec<EncodedTensor>>>,
        (): &(),
        place: &Matrices<Matrix>,
    ) -> Result<()> {
        let tensors = sent.recv().map_err(|_| "the reader has ended")??;
        for (tensor, place) in tensors.iter().zip(place) {
            let Matrix::Place(place) = place else {
                return Err("not a place for a matrix".into());
            };
            let (spec, bytes) = &mut *place.borrow_mut();
            *spec = tensor.spec().clone();
            bytes.resize(spec.byte_len() as usize, 0);
            let encoding = bigsmall_io::encoding(tensor.encoding())?;
            tensor.decode_bytes(encoding, 0..spec.byte_len(), bytes)?;
        }
        Ok(())
    }
}
