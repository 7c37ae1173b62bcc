/** The dashboards as Grafana's own published types see them: nothing unknown, nothing missing, no other type or word.
 *
 * @grafana/schema types a panel's options by its kind, but leaves them open in the dashboard; here each kind has its own.
 */
import type * as raw from "./node_modules/@grafana/schema/dist/esm/raw/dashboard/x/dashboard_types.gen";
import type * as timeseries from "./node_modules/@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";
import type * as stat from "./node_modules/@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type * as bargauge from "./node_modules/@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen";
import type * as table from "./node_modules/@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen";

/** JSON has no enums: an enum of strings is any of its values. */
type Plain<T> = unknown extends T ? T
  : T extends string ? `${T}`
  : T extends (infer Item)[] ? Plain<Item>[]
  : T extends object ? { [Key in keyof T]: Plain<T[Key]> }
  : T;

/** Grafana's Prometheus query, which @grafana/schema leaves to the data source. */
interface Target {
  datasource: raw.DataSourceRef;
  expr: string;
  refId: string;
  format?: "table" | "time_series" | "heatmap";
  instant?: boolean;
  range?: boolean;
  legendFormat?: string;
}

interface Defaults<Custom> extends Omit<raw.FieldConfig, "custom" | "links"> {
  custom?: Custom;
  links?: { title: string; url: string; targetBlank?: boolean }[];
}

/** What an override may set: a field of the panel's kind, of that field's type. */
type Property<Custom> =
  | { id: "unit"; value: string }
  | { id: "color"; value: raw.FieldColor }
  | { [Key in keyof Custom & string]-?: { id: `custom.${Key}`; value: Custom[Key] } }[keyof Custom & string];

interface Override<Custom> {
  matcher: raw.MatcherConfig;
  properties: Property<Custom>[];
}

interface Panel<Type extends string, Options, Custom> extends Omit<raw.Panel, "type" | "options" | "targets" | "fieldConfig"> {
  type: Type;
  options: Options;
  targets: Target[];
  fieldConfig: { defaults: Defaults<Custom>; overrides: Override<Custom>[] };
}

export type Dashboard = Plain<
  Omit<raw.Dashboard, "panels"> & {
    panels: (
      | Panel<"timeseries", timeseries.Options, timeseries.FieldConfig>
      | Panel<"stat", stat.Options, never>
      | Panel<"bargauge", bargauge.Options, never>
      | Panel<"table", table.Options, Partial<table.FieldConfig>>
    )[];
  }
>;
