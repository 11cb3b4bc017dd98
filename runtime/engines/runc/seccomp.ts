// draft
export const seccompProfile: object | undefined = undefined;
