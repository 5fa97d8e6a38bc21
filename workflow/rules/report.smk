# One self-contained page about the campaign.


rule report:
    input:
        campaigns.report_input,
    output:
        "results/{campaign}/report/index.html",
    log:
        "logs/{campaign}/report.log",
    benchmark:
        "results/{campaign}/timings/report.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: campaigns.threads("cpu")
    resources:
        mem_mb=campaigns.mem_mb("cpu"),
        runtime=campaigns.runtime("cpu"),
    params:
        config="results/{campaign}/config.yaml",
        results=subpath(output[0], ancestor=2),
        settings=campaigns.settings("report"),
        code=stage_code_hash("report"),
    shell:
        "dao-pipeline report --config {params.config:q} --results {params.results:q} --out {output:q} > {log:q} 2>&1"
