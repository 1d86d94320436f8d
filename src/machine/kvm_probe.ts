// machine/kvm_probe.ts: (helper KVM writes this)
export async function probeMachines(): Promise<{ readonly ok: boolean; readonly reason: string }> {
  return { ok: false, reason: 'not probed yet' }
}
