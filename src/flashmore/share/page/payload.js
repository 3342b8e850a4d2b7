/** What the page carries: see flashmore/share/page.py, which writes it. */

/** Unpacks base64 of a gzip file into {header, models}; a TypeError or SyntaxError if it is damaged. */
export async function unpack(base64) {
  const text = atob(base64);
  const packed = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
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
  const bytes = new Uint8Array(planes.length);
  for (let plane = 0; plane < 4; plane++) {
    for (let n = 0; n < count; n++) bytes[4 * n + plane] = planes[plane * count + n];
  }
  return new Float32Array(bytes.buffer);
}

const part = (numbers, [start, length]) => Float64Array.from(numbers.subarray(start, start + length));

const tensorsOf = (layout, numbers) =>
  Object.fromEntries(Object.entries(layout).map(([name, place]) => [name, part(numbers, place)]));
