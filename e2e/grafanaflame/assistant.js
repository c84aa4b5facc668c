// What the component uses of Grafana's assistant, which there is none of.
export const useAssistant = () => ({ isAvailable: false });
export const OpenAssistantButton = () => null;
export const createAssistantContextItem = () => ({});
