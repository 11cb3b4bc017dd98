// Asks each host in the way that is asked for, by TCP or by ICMP.
//
//   K1  The default kind works, or there is no prober: that ICMP cannot be used is said when the program begins.
//   K2  A container that asks for ICMP where it cannot be used is watched by TCP, and this is said once: an unasked host would
//       count as dead. Specifications come from the store at any time, and this machine may be the only one without ICMP.
import { reasonOf } from "../../actors/hakobu-error.js";
import type { Log } from "../../actors/ports/log.js";
import type { ProbeKind, Prober, ProbeResult, Target } from "../../actors/ports/prober.js";
import { IcmpProber } from "./icmp.js";
import { TcpProber } from "./tcp.js";

export class ProberByKind implements Prober {
  readonly #default: ProbeKind;
  readonly #log: Log;
  readonly #tcp = new TcpProber();
  /** Opened for the first that asks for it. */
  #icmp: IcmpProber | "unusable" | undefined;
  #closed = false;

  /** @throws HakobuError CONFIG_INVALID when `defaultKind` is icmp and ICMP cannot be used here */
  constructor(defaultKind: ProbeKind, log: Log) {
    this.#default = defaultKind;
    this.#log = log;
    if (defaultKind === "icmp") this.#icmp = new IcmpProber();
  }

  probe(target: Target, timeoutMs: number, kind: ProbeKind = this.#default): Promise<ProbeResult> {
    if (this.#closed) return Promise.resolve({ kind: "unknown", code: "PROBER_CLOSED" });
    switch (kind) {
      case "tcp":
        return this.#tcp.probe(target, timeoutMs);
      case "icmp": {
        this.#icmp ??= this.#open();
        return (this.#icmp === "unusable" ? this.#tcp : this.#icmp).probe(target, timeoutMs);
      }
    }
  }

  /** Idempotent. */
  close(): void {
    this.#closed = true;
    if (this.#icmp instanceof IcmpProber) this.#icmp.close();
  }

  #open(): IcmpProber | "unusable" {
    try {
      return new IcmpProber();
    } catch (error) {
      this.#log.warn({ reason: reasonOf(error) }, "hosts are probed by TCP where ICMP was asked for");
      return "unusable";
    }
  }
}
