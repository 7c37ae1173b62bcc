{{/* Prefix of every name of this release: "paceline" under the release name "paceline". */}}
{{- define "paceline.fullname" -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "paceline.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag }}
{{- end }}

{{/* What a Deployment selects by: never changes over an upgrade. The component is the operator, or the one that the
     caller merged in: include "paceline.selector" (merge (dict "component" "autoscaler") .) */}}
{{- define "paceline.selector" -}}
app.kubernetes.io/name: paceline
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: {{ .component | default "operator" }}
{{- end }}

{{- define "paceline.labels" -}}
{{ include "paceline.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* For a Prometheus that finds its targets by annotations; the PodMonitor does without. */}}
{{- define "paceline.scrapeAnnotations" -}}
prometheus.io/scrape: "true"
prometheus.io/port: "8080"
prometheus.io/path: /metrics
{{- end }}

{{/* A file of rules/ for the scrape interval of the values. */}}
{{- define "paceline.rules" -}}
{{- $interval := .root.Values.prometheus.scrapeInterval -}}
{{- $window := printf "%ds" (max 30 (mul 4 (trimSuffix "s" $interval | atoi))) -}}
{{- .root.Files.Get (printf "rules/%s.yaml" .file) | replace "__INTERVAL__" $interval | replace "__WINDOW__" $window
    | replace "__RUNBOOKS__" (trimSuffix "/" .root.Values.rules.runbookBaseURL) -}}
{{- end }}

{{/* The `restricted` Pod Security Standard, for a pod and for a container. */}}
{{- define "paceline.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "paceline.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Of the containers of operator and autoscaler: who they are, their port and their probes. */}}
{{- define "paceline.process" -}}
env:
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
ports:
- {name: http, containerPort: 8080}
startupProbe:
  httpGet: {path: /healthz, port: http}
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /healthz, port: http}
  periodSeconds: 10
  timeoutSeconds: 5
readinessProbe:
  httpGet: {path: /healthz, port: http}
  periodSeconds: 5
  timeoutSeconds: 5
{{- end }}

{{/* Where a pod may run, from a section of the values. */}}
{{- define "paceline.placement" -}}
{{- range $field := list "nodeSelector" "tolerations" "affinity" }}
{{- with index $ $field }}
{{ $field }}: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}
