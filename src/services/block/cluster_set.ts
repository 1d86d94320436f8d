// services/block/cluster_set.ts: which clusters of an image are tables: what a guest's data must not be written over.
//
// Hot path in has: no allocation, no closures, numbers and typed arrays only. A sorted array, as there is one entry for
// 512 MiB of disk; new tables come at the end nearly always.

/** Numbers of clusters, sorted. */
export class ClusterSet {
  #sorted: Float64Array
  #count: number

  constructor(clusters: Float64Array) {
    this.#sorted = clusters.sort()
    this.#count = clusters.length
  }

  /** A cluster that is in it twice, or -1. */
  twice(): number {
    for (let i = 1; i < this.#count; i++) if (this.#sorted[i] === this.#sorted[i - 1]) return this.#sorted[i]!
    return -1
  }

  has(cluster: number): boolean {
    return this.#sorted[this.#place(cluster)] === cluster
  }

  add(cluster: number): void {
    const at = this.#place(cluster)
    if (this.#count === this.#sorted.length) {
      const larger = new Float64Array(2 * this.#count + 16).fill(Infinity)
      larger.set(this.#sorted)
      this.#sorted = larger
    }
    this.#sorted.copyWithin(at + 1, at, this.#count++)
    this.#sorted[at] = cluster
  }

  delete(cluster: number): void {
    const at = this.#place(cluster)
    if (this.#sorted[at] !== cluster) return
    this.#sorted.copyWithin(at, at + 1, this.#count--)
    this.#sorted[this.#count] = Infinity
  }

  // Where it is, or would be.
  #place(cluster: number): number {
    let from = 0
    let to = this.#count
    while (from < to) {
      const middle = (from + to) >>> 1
      if (this.#sorted[middle]! < cluster) from = middle + 1
      else to = middle
    }
    return from
  }
}
