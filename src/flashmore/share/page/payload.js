/** What the page carries: see flashmore/share/page.py, which writes it. */

/** Unpacks base64 of a gzip file into the header, with each model's tensors; rejects if it is damaged. */
export async function unpack(base64) {
  const text = atob(base64);
  const packed = new Uint8Array(text.length);
  for (let n = 0; n < packed.length; n++) packed[n] = text.charCodeAt(n);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const data = await new Response(stream).arrayBuffer();
  const length = new DataView(data).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  const numbers = float32(new Uint8Array(data, 4 + length));
  header.models.forEach((model) => (model.tensors = tensorsOf(model.layout, numbers)));
  header.references.forEach((reference) => (reference.logits = part(numbers, reference.logits)));
  return header;
}

/** Float32 numbers of which the file has all first bytes, then all second bytes, …: that compresses better. */
function float32(planes) {
  const count = planes.length / 4;
  const words = new Uint32Array(count);
  for (let n = 0; n < count; n++) {
    words[n] = planes[n] | (planes[count + n] << 8) | (planes[2 * count + n] << 16) | (planes[3 * count + n] << 24);
  }
  return new Float32Array(words.buffer);
}

const part = (numbers, [start, length]) => new Float64Array(numbers.subarray(start, start + length));

const tensorsOf = (layout, numbers) =>
  Object.fromEntries(Object.entries(layout).map(([name, place]) => [name, part(numbers, place)]));
