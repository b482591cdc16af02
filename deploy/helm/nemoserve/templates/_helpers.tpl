{{- define "nemoserve.name" -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "nemoserve.selector" -}}
app.kubernetes.io/name: nemoserve
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "nemoserve.labels" -}}
{{ include "nemoserve.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "nemoserve.image" -}}
{{- $usual := ternary "cuda" "cpu" (gt (int .Values.gpus) 0) -}}
{{ .Values.image.repository }}:{{ default $usual .Values.image.tag }}
{{- end -}}

{{- define "nemoserve.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop:
    - ALL
{{- end -}}
