// SPDX-License-Identifier: Apache-2.0
// The type of nettop's dashboards, built from @grafana/schema. Grafana's own panel type accepts any options and fields:
// here each kind of panel has exactly those of its plugin.

import type * as schema from '@grafana/schema';
import type * as Heatmap from '@grafana/schema/dist/types/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen';
import type * as Stat from '@grafana/schema/dist/types/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type * as States from '@grafana/schema/dist/types/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen';
import type * as Table from '@grafana/schema/dist/types/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import type * as TimeSeries from '@grafana/schema/dist/types/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

// In JSON, an enum value is its text or number.
type InJson<T> = T extends string
  ? `${T}`
  : T extends number
    ? `${T}` extends `${infer N extends number}`
      ? N
      : number
    : T extends Array<infer Item>
      ? Array<InJson<Item>>
      : T extends object
        ? { [Name in keyof T]: InJson<T[Name]> }
        : T;

type Nothing = Record<string, never>;
type Uid = '${datasource}';
interface Source<Plugin extends string> {
  type: Plugin;
  uid: Uid;
}

// --- queries: these types come from the data sources, not the schema ---

interface PromQL extends Omit<schema.DataQuery, 'datasource' | 'hide' | 'queryType'> {
  datasource: Source<'prometheus'>;
  editorMode: 'code';
  expr: string;
  format: 'time_series' | 'table' | 'heatmap';
  instant: boolean;
  range: boolean;
  legendFormat?: string;
}

interface Sql extends Omit<schema.DataQuery, 'datasource' | 'hide' | 'queryType'> {
  datasource: Source<'grafana-clickhouse-datasource'>;
  editorType: 'sql';
  queryType: 'table' | 'timeseries';
  format: 0 | 1;
  rawSql: string;
}

type Queries =
  | { datasource: Source<'prometheus'>; targets: PromQL[] }
  | { datasource: Source<'grafana-clickhouse-datasource'>; targets: Sql[] };

// --- fields ---

type Standard = InJson<Omit<schema.FieldConfig, 'links' | 'custom'>>;

// The schema types links as unknown.
interface Linked {
  links?: Array<{ title: string; url: string }>;
}

interface Fields<Custom> {
  defaults: Standard & { custom?: Custom };
  overrides: Array<{
    matcher: { id: 'byName' | 'byRegexp' | 'byFrameRefID'; options: string };
    properties: Array<Property<Standard & Linked, ''> | Property<Custom, 'custom.'>>;
  }>;
}

type Property<Of, Prefix extends string> = {
  [Name in keyof Of & string]-?: { id: `${Prefix}${Name}`; value: NonNullable<Of[Name]> };
}[keyof Of & string];

// --- panels ---

interface Organize {
  id: 'organize';
  options: {
    includeByName: Record<string, boolean>;
    indexByName: Record<string, number>;
    renameByName: Record<string, string>;
  };
}

type Kind<Type extends string, Options, Custom> = {
  type: Type;
  id: number;
  title: string;
  description?: string;
  gridPos: Required<Pick<schema.GridPos, 'x' | 'y' | 'w' | 'h'>>;
  options: Options;
  fieldConfig: Fields<Custom>;
  transformations?: Organize[];
} & Partial<Pick<InJson<schema.Panel>, 'repeat' | 'repeatDirection' | 'maxPerRow'>> & Queries;

// The options of a third-party plugin: netsage-sankey-panel.
interface Sankey {
  monochrome: boolean;
  color: string;
  nodeColor: string;
  textColor: string;
  nodeWidth: number;
  nodePadding: number;
}

type AnyPanel =
  | Kind<'timeseries', InJson<TimeSeries.Options>, InJson<TimeSeries.FieldConfig>>
  | Kind<'stat', InJson<Stat.Options>, Nothing>
  | Kind<'table', InJson<Table.Options>, InJson<Partial<Table.FieldConfig>>>
  | Kind<'heatmap', InJson<Heatmap.Options>, InJson<Heatmap.FieldConfig>>
  | Kind<'state-timeline', InJson<States.Options>, InJson<States.FieldConfig>>
  | Kind<'netsage-sankey-panel', Sankey, Nothing>;

interface Row extends Pick<InJson<schema.RowPanel>, 'type' | 'id' | 'title' | 'collapsed' | 'gridPos' | 'repeat'> {
  panels: AnyPanel[];
}

// --- the dashboard ---

type Variable = Omit<InJson<schema.VariableModel>, 'datasource'> & {
  datasource?: Source<'prometheus'> | Source<'grafana-clickhouse-datasource'>;
};

export type Dashboard = Omit<
  InJson<Omit<schema.Dashboard, 'panels' | 'templating'>>,
  'uid' | 'title' | 'gnetId' | 'id' | 'snapshot'
> & {
  uid: string;
  title: string;
  panels: Array<AnyPanel | Row>;
  templating: { list: Variable[] };
};
