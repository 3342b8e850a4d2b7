/** Random numbers: MT19937 as in Python's `random.Random(seed).random()`, whose sequence Python guarantees. */

const N = 624;
const M = 397;

export class Random {
  /** @param {bigint} seed at least 0 */
  constructor(seed) {
    const key = [];
    do {
      key.push(Number(seed & 0xffffffffn));
      seed >>= 32n;
    } while (seed);
    const state = (this.state = new Uint32Array(N));
    state[0] = 19650218;
    for (let i = 1; i < N; i++) state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
    let i = 1;
    const mix = (factor, add) => {
      state[i] = (state[i] ^ Math.imul(state[i - 1] ^ (state[i - 1] >>> 30), factor)) + add(i);
      if (++i === N) {
        state[0] = state[N - 1];
        i = 1;
      }
    };
    for (let k = 0; k < Math.max(N, key.length); k++) mix(1664525, () => key[k % key.length] + (k % key.length));
    for (let k = 1; k < N; k++) mix(1566083941, (place) => -place);
    state[0] = 0x80000000;
    this.place = N;
  }

  /** The next number in [0, 1), with 53 random bits. */
  next() {
    return ((this.word() >>> 5) * 67108864 + (this.word() >>> 6)) / 9007199254740992;
  }

  word() {
    const state = this.state;
    if (this.place === N) {
      for (let i = 0; i < N; i++) {
        const y = (state[i] & 0x80000000) | (state[(i + 1) % N] & 0x7fffffff);
        state[i] = state[(i + M) % N] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      this.place = 0;
    }
    let y = state[this.place++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }
}
