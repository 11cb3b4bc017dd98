// Certificates for tests that speak TLS, made with openssl.
import { execFileSync } from "node:child_process";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";

/** Paths of PEM files. */
export interface Certificates {
  readonly caFile: string;
  readonly certFile: string;
  readonly keyFile: string;
}

/** An authority and one certificate for both sides, for localhost and 127.0.0.1, in that directory. */
export async function certificates(directory: string): Promise<Certificates> {
  const path = (name: string): string => join(directory, name);
  const files = { caFile: path("ca.pem"), certFile: path("cert.pem"), keyFile: path("key.pem") };
  const openssl = (...args: string[]): void => void execFileSync("openssl", args, { stdio: "ignore" });
  const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
  openssl("req", "-x509", ...key, "-keyout", path("ca.key"), "-out", files.caFile, "-subj", "/CN=test", "-days", "2");
  openssl("req", ...key, "-keyout", files.keyFile, "-out", path("csr.pem"), "-subj", "/CN=hakobu");
  await writeFile(
    path("ext.cnf"),
    "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n",
  );
  const authority = ["-CA", files.caFile, "-CAkey", path("ca.key"), "-CAcreateserial"];
  const request = ["-in", path("csr.pem"), "-out", files.certFile, "-days", "2", "-extfile", path("ext.cnf")];
  openssl("x509", "-req", ...authority, ...request);
  return files;
}
