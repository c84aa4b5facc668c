// Draws window.flame, the answer of a Pyroscope data source, with Grafana's own component. The packages are required, not
// imported: their modules for import take the default of some CommonJS packages for something else. All frames are shown,
// as after "Expand all groups".
const { createDataFrame, createTheme, FieldType } = require('@grafana/data');
const { FlameGraph } = require('@grafana/flamegraph');
const { createElement } = require('react');
const { createRoot } = require('react-dom/client');

const { level, value, self, label } = window.flame;
const number = (name, values, config) => ({ name, type: FieldType.number, values, config });
const data = createDataFrame({
  fields: [
    number('level', level, {}),
    number('value', value, { unit: 'ns' }),
    number('self', self, { unit: 'ns' }),
    { name: 'label', type: FieldType.string, values: label, config: {} },
  ],
});
const theme = createTheme({ colors: { mode: 'light' } });
createRoot(document.getElementById('root')).render(createElement(FlameGraph, { data, getTheme: () => theme, disableCollapsing: true }));
