//! From an encoded tensor to a matrix on the device.

use bigsmall_format::{EncodedTensor, EncodingId};

use crate::context::Wgpu;
use crate::error::Result;
use crate::layout::Resident;
use crate::pack_host::pack_on_host;
use crate::weights::WgpuWeights;

/// How [`Wgpu::upload_with`] brings a matrix to the device.
///
/// ```
/// use bigsmall_gpu::{Resident, UploadOptions};
/// let options = UploadOptions::new().form(Resident::Dense4).decode_on_device(true);
/// assert_eq!(options.form, Some(Resident::Dense4));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UploadOptions {
    /// The resident form. `None`: the one that takes the fewest bytes, but 12 bits instead of 11 on
    /// a GPU whose memory is so fast that 11 bits would wait for instructions (a table by name).
    pub form: Option<Resident>,
    /// Whether the device decodes and packs a matrix in ANS form, instead of the host.
    ///
    /// The resulting bytes are the same. If the device decodes, the encoded form crosses the bus
    /// instead of the resident form: about two thirds of the decoded bytes. The host reads only
    /// headers, tables and exceptions. During the upload the device needs memory for the decoded
    /// matrix (16 bits per weight), and for the larger of the encoded and the resident form. The
    /// upload waits for the device several times.
    ///
    /// The host still decodes a matrix in another encoding, and a matrix that the device cannot
    /// bind as a whole in decoded form. [`WgpuWeights::decoded_on_device`] tells which one decoded.
    pub decode_on_device: bool,
}

impl UploadOptions {
    /// The default: the smallest form, decoded by the host.
    #[must_use]
    pub fn new() -> Self {
        UploadOptions::default()
    }

    /// Sets [`form`](Self#structfield.form).
    #[must_use]
    pub fn form(mut self, form: impl Into<Option<Resident>>) -> Self {
        self.form = form.into();
        self
    }

    /// Sets [`decode_on_device`](Self#structfield.decode_on_device).
    #[must_use]
    pub fn decode_on_device(mut self, decode_on_device: bool) -> Self {
        self.decode_on_device = decode_on_device;
        self
    }
}

impl Wgpu {
    /// [`upload`](crate::MatmulBackend::upload) with options.
    ///
    /// Memory on the host: 32 MiB and one row. Memory on the device, and data over the bus: the
    /// resident form. With [`UploadOptions::decode_on_device`], memory on the host is 32 MiB, an
    /// index of half a per cent of the tensor, and four bytes for each row, or for each 16,384
    /// weights of a longer row.
    ///
    /// # Errors
    /// Those of [`upload`](crate::MatmulBackend::upload); [`ErrorKind::TooLarge`](crate::ErrorKind)
    /// for a row that exceeds the device's limits.
    pub fn upload_with(
        &self,
        tensor: &EncodedTensor,
        options: &UploadOptions,
    ) -> Result<WgpuWeights> {
        let name = tensor.spec().name();
        let on_device = options.decode_on_device
            && tensor.encoding() == EncodingId::Ans
            && self.can_decode(tensor);
        let upload = || {
            if on_device {
                return self.pack_on_device(tensor, options.form);
            }
            let matrix = pack_on_host(&self.device, tensor, options.form)?;
            Ok(WgpuWeights::new(&self.device, name, matrix))
        };
        self.device.guarded(upload).map_err(|e| e.in_tensor(name))
    }
}
