{{/* Names are the ones that the processes know each other by, so they do not follow the release's name. */}}

{{- define "edgetun.labels" -}}
app.kubernetes.io/name: edgetun-{{ .component }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/part-of: edgetun
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "edgetun.metadata" -}}
labels:
  {{- include "edgetun.labels" . | nindent 2 }}
{{- with .labels }}
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with merge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Never changes: a Deployment's selector cannot. */}}
{{- define "edgetun.selector" -}}
app.kubernetes.io/name: edgetun-{{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{- define "edgetun.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* One ClusterRole per installation, so that a second one beside it, on trial, does not take the first one's rights. */}}
{{- define "edgetun.clusterRole" -}}
edgetun-{{ .component }}:{{ .root.Release.Namespace }}
{{- end }}
