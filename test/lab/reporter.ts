// mocha's own report, and after it one plain last line for programs: `N passed, N failed, N skipped`.
import Mocha from "mocha";

class LastLine extends Mocha.reporters.Spec {
  override epilogue(): void {
    super.epilogue();
    const { passes, failures, pending } = this.stats;
    process.stdout.write(`${passes} passed, ${failures} failed, ${pending} skipped\n`);
  }
}

// mocha takes a reporter from a module's default export only.
export { LastLine as default };
